"""vLLM's real scheduler, KV cache manager and block pool, driven by hand: no model and no server.

What the script did, and what vLLM itself says of it, is the truth that the tables are compared with. It is taken from
vLLM's results and from wrappers around functions that ProfileMate does not hook.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from functools import cache
from typing import Any

import torch
from vllm.engine.arg_utils import EngineArgs
from vllm.pooling_params import PoolingParams
from vllm.sampling_params import RepetitionDetectionParams, SamplingParams, StructuredOutputsParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.input_processor import InputProcessor
from vllm.v1.engine.output_processor import OutputProcessor
from vllm.v1.engine.parallel_sampling import ParentRequest
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec, SlidingWindowSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

BLOCK_SIZE = 16
#: Ends a request that was made with `stops=True`.
STOP_TOKEN = 999

Json = dict[str, Any]


def block_hasher() -> Any:
    init_none_hash(sha256)
    return get_request_block_hasher(BLOCK_SIZE, sha256)


@cache
def sampling_params(max_tokens: int, structured: bool, repetition: bool, stops: bool) -> Any:
    sampling = SamplingParams(
        max_tokens=max_tokens,
        ignore_eos=True,
        stop_token_ids=[STOP_TOKEN] if stops else None,
        structured_outputs=StructuredOutputsParams(regex="a") if structured else None,
        repetition_detection=RepetitionDetectionParams(max_pattern_size=1, min_count=3) if repetition else None,
    )
    sampling.update_from_generation_config({}, None)
    return sampling


class AnyGrammar:
    """A grammar that everything fits."""

    def accept_tokens(self, _request_id: str, _tokens: list[int]) -> bool:
        return True


class Engine:
    """A scheduler, and the truth about what it did."""

    def __init__(
        self,
        model: str,
        blocks: int,
        *,
        max_num_seqs: int = 8,
        max_num_tokens: int = 512,
        max_model_len: int = 512,
        asynchronous: bool = False,
        sliding_window: int = 0,
        log_stats: bool = True,
        keeps_truth: bool = True,
        **options: Any,
    ) -> None:
        config = EngineArgs(
            model=model,
            load_format="dummy",
            enforce_eager=True,
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_tokens,
            disable_log_stats=not log_stats,
            **options,
        ).create_engine_config()
        shape = {"block_size": BLOCK_SIZE, "num_kv_heads": 2, "head_size": 32, "dtype": torch.float32}
        groups = [KVCacheGroupSpec(["full"], FullAttentionSpec(**shape))]
        if sliding_window:
            window = SlidingWindowSpec(**shape, sliding_window=sliding_window)
            groups.append(KVCacheGroupSpec(["window"], window))
        # One block stands for "none" and is never given out.
        config.cache_config.num_gpu_blocks = blocks + 1
        cache = KVCacheConfig(num_blocks=blocks + 1, kv_cache_tensors=[], kv_cache_groups=groups)
        self.config = config
        self.scheduler = (AsyncScheduler if asynchronous else Scheduler)(
            vllm_config=config,
            kv_cache_config=cache,
            structured_output_manager=StructuredOutputManager(config),
            block_size=BLOCK_SIZE,
            log_stats=log_stats,
        )
        self.hasher = block_hasher() if config.cache_config.enable_prefix_caching else None
        self.manager = self.scheduler.kv_cache_manager
        self.pool = self.manager.block_pool
        #: By index of the client.
        self.processors: dict[int, Any] = {}
        #: Step and client of every call of a front end that takes outputs.
        self.taken: list[list[int]] = []
        self.step_number = 0
        self.serial = 0
        self.keeps_truth = keeps_truth
        #: By id, in the order in which they were added.
        self.requests: dict[str, Any] = {}
        self.about: dict[str, Json] = {}
        self.events: list[Json] = []
        self.steps: list[Json] = []
        self.stats: list[Json] = []
        #: Cached blocks that were evicted, as vLLM's own collector sees them: block, life, idle time, accesses up to 4.
        self.evictions: list[Any] = []
        #: Their numbers, from the pool.
        self.evicted_blocks: list[int] = []
        #: What vLLM gave, for a comparison of runs.
        self.results: list[Any] = []
        #: Tokens that the made-up model gives for a request, by the number of tokens that it has generated.
        self.tokens: dict[str, dict[int, int]] = defaultdict(dict)
        self._counts: dict[str, int] = defaultdict(int)
        self._totals: dict[str, int] = defaultdict(int)
        #: What of the scheduler's runs right now.
        self._doing = ""
        self._refused: Any = None
        if keeps_truth:
            self._watch_blocks()
            self._watch_lookups()
            self._watch_preemptions()
            if self.scheduler.kv_metrics_collector is not None:
                self._watch_collector()

    # What is asked of the scheduler

    def add(
        self,
        request_id: str,
        prompt: int | Sequence[int],
        max_tokens: int = 16,
        *,
        structured: bool = False,
        pooling: bool = False,
        resumable: bool = False,
        repetition: bool = False,
        stops: bool = False,
        **options: Any,
    ) -> Any:
        """Adds a request with this prompt, or with one of this length that has nothing in common with any other."""
        self.serial += 1
        tokens = (
            [self.serial * 10_000 + place for place in range(prompt)] if isinstance(prompt, int) else list(prompt)
        )
        status = options.pop("status", None)
        request = Request(
            request_id,
            tokens,
            None if pooling else sampling_params(max_tokens, structured, repetition, stops),
            PoolingParams(task="embed") if pooling else None,
            arrival_time=options.pop("arrival_time", time.time()),
            block_hasher=self.hasher,
            resumable=resumable,
            **options,
        )
        if structured:
            request.structured_output_request.grammar = Future()
        if status is not None:
            request.status = status
        return self.admit(request)

    def admit(self, request: Any) -> Any:
        """Gives a request to the scheduler."""
        session = self.scheduler.requests.get(request.request_id)
        self.scheduler.add_request(request)
        if session is not None and session.is_finished():
            # What ended a session that waited for input is not another request.
            self._note_abort(session)
        if self.keeps_truth and session is None:
            self.requests[request.request_id] = request
            self.about[request.request_id] = {
                "id": request.request_id,
                "arrived": request.arrival_time,
                "priority": request.priority,
                "queued_prompt_tokens": request.num_prompt_tokens,
                "kind": "pooling" if request.pooling_params else "streaming" if request.resumable else "generate",
            }
        return request

    def schedule(self) -> Any:
        """One call of `Scheduler.schedule`."""
        self._doing, self._refused = "schedule", None
        self.step_number += 1
        output = self.scheduler.schedule()
        self._doing = ""
        # A token comes for each request whose prompt, or what was computed of it before, is complete by this step.
        output.made_up_complete = {
            request_id: not self.scheduler.requests[request_id].is_prefill_chunk
            for request_id in output.num_scheduled_tokens
        }
        output.made_up_step = self.step_number
        if self.keeps_truth:
            self._note_schedule(output)
        return output

    def update(self, output: Any) -> dict[int, Any]:
        """`Scheduler.update_from_output` with what a model might have said."""
        ids = list(output.num_scheduled_tokens)
        is_pooling = self.config.model_config.runner_type == "pooling"
        sampled = [self._sampled(each) if output.made_up_complete[each] else [] for each in ids]
        model_output = ModelRunnerOutput(
            req_ids=ids,
            req_id_to_index={request_id: place for place, request_id in enumerate(ids)},
            sampled_token_ids=[] if is_pooling else sampled,
            logprobs=None,
            prompt_logprobs_dict={},
            pooler_output=[torch.zeros(4) if output.made_up_complete[each] else None for each in ids]
            if is_pooling
            else [],
        )
        self._doing = "update"
        outputs: dict[int, Any] = self.scheduler.update_from_output(output, model_output)
        self._doing = ""
        if self.keeps_truth:
            self._note_update(output, outputs)
        return outputs

    def step(self) -> dict[int, Any]:
        """Both, one after the other."""
        return self.update(self.schedule())

    def run(self, most: int = 10_000) -> None:
        """As `EngineCore.step` does, until there is nothing to do."""
        for _ in range(most):
            if not self.scheduler.has_requests():
                return
            self.step()
        raise RuntimeError(f"{len(self.scheduler.requests)} requests are left after {most} steps")

    def abort(self, ids: str | Iterable[str] | None, status: Any = RequestStatus.FINISHED_ABORTED) -> None:
        """From outside of a step."""
        for request in self.scheduler.finish_requests(ids, status):
            self._note_abort(request)

    def reset_prefix_cache(self, reset_running_requests: bool = False) -> bool:
        self._doing = "reset"
        done: bool = self.scheduler.reset_prefix_cache(reset_running_requests=reset_running_requests)
        self._doing = ""
        return done

    def grammar_is_ready(self, request: Any, error: Exception | None = None) -> None:
        grammar = request.structured_output_request._grammar
        if error is None:
            grammar.set_result(AnyGrammar())
        else:
            grammar.set_exception(error)

    # A front end, as `LLMEngine.add_request` and `LLMEngine.step` have it

    def ask(
        self, client_id: str, prompt: Sequence[int], n: int = 1, client_index: int = 0, **options: Any
    ) -> list[Any]:
        """A client's request, under the id that the client has for it; gives those that the engine has for it."""
        processor = self.processors.setdefault(client_index, OutputProcessor(None, log_stats=False))
        sampling = SamplingParams(n=n, ignore_eos=True, detokenize=False, **options)
        sampling.update_from_generation_config({}, None)

        def core_request(request_id: str, sampling: Any, external: str | None) -> Any:
            return EngineCoreRequest(
                request_id=request_id,
                prompt_token_ids=list(prompt),
                mm_features=None,
                sampling_params=sampling,
                pooling_params=None,
                arrival_time=time.time(),
                lora_request=None,
                cache_salt=None,
                data_parallel_rank=None,
                client_index=client_index,
                external_req_id=external,
            )

        request = core_request(client_id, sampling, None)
        InputProcessor.assign_request_id(request)
        parent = None if n == 1 else ParentRequest(request)
        samples = [request]
        if parent is not None:
            children = [parent.get_child_info(index) for index in range(n)]
            samples = [core_request(child_id, child_sampling, client_id) for child_id, child_sampling in children]
        asked = []
        for index, sample in enumerate(samples):
            processor.add_request(sample, None, parent, index, None)
            admitted = self.admit(Request.from_engine_core_request(sample, self.hasher))
            self.about[admitted.request_id] |= {
                "client_id": client_id,
                "client_index": client_index,
                "sample_index": index,
            }
            asked.append(admitted)
        return asked

    def take(self, step: int, outputs: dict[int, Any]) -> None:
        """The front ends take what a step gave, each one its share in two slices."""
        for client, each in outputs.items():
            if not each.outputs:
                continue
            for share in (each.outputs[:1], each.outputs[1:]):
                self.taken.append([step, client])
                self.processors[client].process_outputs(share, each.timestamp, None)

    # The truth

    def truth(self) -> Json:
        requests = []
        for request_id, request in self.requests.items():
            about = self.about[request_id]
            requests.append(
                {
                    **about,
                    "prompt_tokens": request.num_prompt_tokens,
                    "preemptions": request.num_preemptions,
                    "output_tokens": request.num_output_tokens,
                }
            )
        return {
            "block_size": BLOCK_SIZE,
            "requests": requests,
            "events": self.events,
            "steps": self.steps,
            "stats": self.stats,
            "evictions": self.evictions,
            "evicted_blocks": self.evicted_blocks,
            "taken": self.taken,
            "totals": dict(self._totals),
            "results": self.results,
        }

    def _sampled(self, request_id: str) -> list[int]:
        request = self.scheduler.requests.get(request_id)
        if request is None:
            return [7]
        count = request.num_output_tokens
        return (
            [self.tokens[request_id].get(count, 1_000 + count)] if request_id in self.tokens else [1_000 + count]
        )

    def _event(self, event: str, request_id: str, step: int, **details: Any) -> None:
        if self.keeps_truth:
            self.events.append({"event": event, "id": request_id, "step": step, **details})

    def _note_abort(self, request: Any) -> None:
        if not self.keeps_truth:
            return
        reason = str(request.get_finished_reason())
        self.about[request.request_id]["finish_reason"] = reason
        self._event(
            "aborted" if request.status == RequestStatus.FINISHED_ABORTED else "finished",
            request.request_id,
            0,
            reason=reason,
            output_tokens=request.num_output_tokens,
        )

    def _note_schedule(self, output: Any) -> None:
        cached = output.scheduled_cached_reqs
        computed = {new.req_id: new.num_computed_tokens for new in output.scheduled_new_reqs}
        computed |= {
            request_id: tokens
            for request_id, tokens in zip(cached.req_ids, cached.num_computed_tokens, strict=True)
            if request_id in cached.resumed_req_ids
        }
        for request_id, tokens in computed.items():
            about = self.about[request_id]
            if "started" not in about:
                about["started"] = self.step_number
                about["cached_tokens"] = tokens
                self._event("started", request_id, self.step_number, cached_tokens=tokens)
            elif about.pop("is_preempted", False):
                self._event("resumed", request_id, self.step_number, cached_tokens=tokens)
        running, waiting = self.scheduler.get_request_counts()
        self.steps.append(
            {
                "step": self.step_number,
                "num_seqs": len(output.num_scheduled_tokens),
                "num_tokens": output.total_num_scheduled_tokens,
                "running": running,
                "waiting": waiting,
                "usage": self.pool.get_usage(),
                "used": self.pool.num_gpu_blocks - 1 - self.pool.get_num_free_blocks(),
                "total": self.pool.num_gpu_blocks - 1,
                "cached": len(self.pool.cached_block_hash_to_block),
                **{name: self._counts[name] for name in ("given", "freed", "evicted", "queries", "hits")},
            }
        )
        self._counts.clear()
        self.results.append(
            [
                self.step_number,
                dict(output.num_scheduled_tokens),
                sorted(output.preempted_req_ids or ()),
                [[new.req_id, [list(blocks) for blocks in new.block_ids]] for new in output.scheduled_new_reqs],
                [[list(b) for b in blocks] if blocks else None for blocks in cached.new_block_ids],
            ]
        )

    def _note_update(self, output: Any, outputs: dict[int, Any]) -> None:
        step = output.made_up_step
        for client, each in outputs.items():
            for one in each.outputs:
                about = self.about[one.request_id]
                if one.new_token_ids:
                    about.setdefault("first_token", step)
                reason = None if one.finish_reason is None else str(one.finish_reason)
                self.results.append([client, one.request_id, list(one.new_token_ids), reason])
                if reason is not None and one.request_id not in self.scheduler.requests:
                    about["finish_reason"] = reason
                    request = self.requests[one.request_id]
                    self._event(
                        "finished", one.request_id, step, reason=reason, output_tokens=request.num_output_tokens
                    )
            if each.scheduler_stats is not None:
                stats = each.scheduler_stats
                prefix = stats.prefix_cache_stats
                self.stats.append(
                    {
                        "step": step,
                        "queries": prefix.queries,
                        "hits": prefix.hits,
                        "usage": stats.kv_cache_usage,
                        "evictions": len(stats.kv_cache_eviction_events),
                    }
                )

    def _count(self, what: str, number: int) -> None:
        self._counts[what] += number
        self._totals[what] += number

    def _watch_blocks(self) -> None:
        """Counts what the pool gives out and takes back. It calls its own methods by name, so these are in the way."""
        pool = self.pool
        get_new_blocks, touch = pool.get_new_blocks, pool.touch
        free_blocks, evict = pool.free_blocks, pool._maybe_evict_cached_block

        def counting_get(number: int) -> Any:
            given = get_new_blocks(number)
            self._count("given", len(given))
            self._totals["allocated"] += len(given)
            return given

        def counting_touch(blocks: Any) -> None:
            blocks = list(blocks)
            self._count("given", sum(1 for block in blocks if block.ref_cnt == 0 and not block.is_null))
            touch(blocks)

        def counting_free(blocks: Any) -> None:
            before = pool.get_num_free_blocks()
            free_blocks(blocks)
            self._count("freed", pool.get_num_free_blocks() - before)

        def counting_evict(block: Any) -> bool:
            is_evicted: bool = evict(block)
            self._count("evicted", int(is_evicted))
            if is_evicted:
                self.evicted_blocks.append(block.block_id)
            return is_evicted

        pool.get_new_blocks, pool.touch = counting_get, counting_touch
        pool.free_blocks, pool._maybe_evict_cached_block = counting_free, counting_evict

    def _watch_lookups(self) -> None:
        """What vLLM would count of its prefix cache, also when its statistics are off."""
        manager = self.manager
        record = manager.record_prefix_cache_stats

        def noting_record(request: Any, num_hits: int) -> None:
            record(request, num_hits)
            if manager.prefix_cache_lookup_enabled(request) and request.num_preemptions == 0:
                self._count("queries", request.num_tokens)
                self._count("hits", num_hits)

        manager.record_prefix_cache_stats = noting_record

    def _watch_collector(self) -> None:
        """What vLLM's own collector of KV cache metrics is told."""
        collector = self.scheduler.kv_metrics_collector
        on_block_evicted = collector.on_block_evicted

        def noting_evicted(block: Any) -> None:
            metrics = collector.block_metrics.get(block.block_id)
            if metrics is not None and block.block_hash is not None:
                self.evictions.append(
                    [
                        block.block_id,
                        metrics.get_lifetime_seconds(),
                        metrics.get_idle_time_seconds(),
                        len(metrics.access_history),
                    ]
                )
            on_block_evicted(block)

        collector.on_block_evicted = noting_evicted

    def _watch_preemptions(self) -> None:
        """Blocks that are freed while the scheduler puts a batch together are those of a request that it preempts."""
        manager = self.manager
        allocate_slots, free = manager.allocate_slots, manager.free

        def noting_allocate(request: Any, *arguments: Any, **keywords: Any) -> Any:
            blocks = allocate_slots(request, *arguments, **keywords)
            self._refused = request if blocks is None else None
            return blocks

        def noting_free(request: Any) -> None:
            before = self.pool.get_num_free_blocks()
            free(request)
            if self._doing not in ("schedule", "reset"):
                return
            details: Json = {
                "computed_tokens": request.num_computed_tokens,
                "output_tokens": request.num_output_tokens,
                "blocks_freed": self.pool.get_num_free_blocks() - before,
            }
            if self._doing == "schedule":
                details |= {"reason": "kv_cache_full", "preempted_for": self._refused.request_id}
            else:
                details |= {"reason": "prefix_cache_reset"}
            step = self.step_number if self._doing == "schedule" else 0
            self.about[request.request_id]["is_preempted"] = True
            self._event("preempted", request.request_id, step, **details)

        manager.allocate_slots, manager.free = noting_allocate, noting_free
