"""What costs little, measured within one running batch: its decode steps take turns in blocks, each with one arm.

Pairs of whole runs differ by some percent, whatever runs in them: a pause of the machine falls into one of them. Here
an arm has 16 steps at a time, in an order that is its own mirror image (ABC CBA), so that a step time that grows with
the context is the same for all; of each block the median step counts, in which no pause is seen.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import common

#: Two-sided 95 % of Student's t, by degrees of freedom.
# fmt: off
T95 = {
    1: 12.706, 2: 4.303, 3: 3.182, 5: 2.571, 9: 2.262, 11: 2.201, 13: 2.160, 15: 2.131, 17: 2.110, 19: 2.093, 23: 2.069,
    27: 2.052, 29: 2.045, 39: 2.023, 49: 2.010, 59: 2.001, 79: 1.990, 89: 1.987, 119: 1.980,
}
# fmt: on


def spread(values: Sequence[float], digits: int = 3) -> dict[str, float]:
    """Mean with its 95 % interval, and median."""
    found = {"mean": statistics.mean(values), "median": statistics.median(values)}
    if len(values) > 1:
        freedom = max(key for key in T95 if key <= len(values) - 1)
        half = T95[freedom] * statistics.stdev(values) / math.sqrt(len(values))
        found |= {"low": found["mean"] - half, "high": found["mean"] + half}
    return {name: round(value, digits) for name, value in found.items()}


class Blocks:
    """Decode steps of a full batch in blocks of one arm each. `use` puts an arm in place, between two engine steps."""

    def __init__(
        self,
        llm: Any,
        use: Callable[[str], None],
        arms: Sequence[str],
        batch: int,
        length: int = 16,
        skip: int = 4,
    ) -> None:
        self.llm, self.use, self.arms, self.batch = llm, use, list(arms), batch
        self.length, self.skip = length, skip
        #: Which arm a block has, by the number of the block.
        self.turns = self._turns()
        self.arm = self.arms[0]
        #: Of the run under way: the number of its step, when it was launched, and a CUDA event behind it; `None` in
        #: their place: a step that is no decode of the full batch.
        self.steps: list[tuple[int, float, Any] | None] = []
        self.number = 0
        #: Cycle → arm → its blocks: milliseconds per step between launches, and on the GPU; medians, then means.
        self.cycles: list[dict[str, list[tuple[float, ...]]]] = []
        self._events: list[Any] = []
        self._wrap()

    def _turns(self) -> list[list[str]]:
        """Each cycle begins with another arm."""
        orders = [self.arms[at:] + self.arms[:at] for at in range(len(self.arms))]
        return [order + order[::-1] for order in orders]

    def _arm_of(self, number: int) -> str:
        block = number // self.length
        cycle, place = divmod(block, 2 * len(self.arms))
        return self.turns[cycle % len(self.turns)][place]

    def _wrap(self) -> None:
        """Listens to the engine's steps and to those of the model runner, whichever functions its class has."""
        engine = self.llm.llm_engine
        runner = engine.model_executor.driver_worker.worker.model_runner
        step = engine.step
        torch = sys.modules["torch"]
        has_gpu = torch.cuda.is_available()

        def engine_step() -> Any:
            arm = self._arm_of(self.number)
            if arm != self.arm:
                self.use(arm)
                self.arm = arm
            return step()

        def execute_model(scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
            tokens = scheduler_output.total_num_scheduled_tokens
            is_steady = (
                tokens == self.batch
                and len(scheduler_output.num_scheduled_tokens) == self.batch
                and not scheduler_output.scheduled_new_reqs
            )
            launched = time.perf_counter() * 1e3
            result = type(runner).execute_model(runner, scheduler_output, *args, **kwargs)
            if tokens == 0:
                return result
            if not is_steady:
                self.steps.append(None)
                return result
            event = None
            if has_gpu:
                event = self._events.pop() if self._events else torch.cuda.Event(enable_timing=True)
                event.record()
            self.steps.append((self.number, launched, event))
            self.number += 1
            return result

        engine.step, runner.execute_model = engine_step, execute_model

    def run(self, prompts: list[Any], lengths: list[int]) -> list[list[int]]:
        """One run whose steps take turns; what they took is kept. Returns its tokens."""
        self.steps.clear()
        self.number = 0
        tokens = common.generate(self.llm, prompts, lengths)
        self._keep()
        return tokens

    def _keep(self) -> None:
        """Puts the run's blocks, of which each has all of its steps, behind those of the runs before."""
        if sys.modules["torch"].cuda.is_available():
            sys.modules["torch"].cuda.synchronize()
        blocks: dict[int, list[tuple[float, float]]] = {}
        for before, step in zip(self.steps, self.steps[1:], strict=False):
            if before is None or step is None or step[0] % self.length < self.skip:
                continue
            on_gpu = before[2].elapsed_time(step[2]) if step[2] is not None else math.nan
            blocks.setdefault(step[0] // self.length, []).append((step[1] - before[1], on_gpu))
        per_cycle = 2 * len(self.arms)
        whole = {number: steps for number, steps in blocks.items() if len(steps) == self.length - self.skip}
        for first in range(0, max(whole, default=-1) + 1, per_cycle):
            if not all(number in whole for number in range(first, first + per_cycle)):
                continue
            cycle: dict[str, list[tuple[float, ...]]] = {arm: [] for arm in self.arms}
            for number in range(first, first + per_cycle):
                walls, gpus = zip(*whole[number], strict=True)
                of_arm = cycle[self._arm_of(number * self.length)]
                of_arm.append(
                    tuple(of(each) for of in (statistics.median, statistics.mean) for each in (walls, gpus))
                )
            self.cycles.append(cycle)
        self._events.extend(step[2] for step in self.steps if step is not None and step[2] is not None)
        self.steps.clear()

    def stop(self) -> None:
        """Listens no more; the arm in place stays."""
        engine = self.llm.llm_engine
        del vars(engine)["step"], vars(engine.model_executor.driver_worker.worker.model_runner)["execute_model"]

    def compared(self, arm: str, against: str) -> dict[str, Any]:
        """What a step takes with the one arm and with the other, over all cycles so far."""
        found: dict[str, Any] = {"arm": arm, "against": against, "cycles": len(self.cycles), "block": self.length}
        if not self.cycles:
            return found
        for at, name in enumerate(("", "gpu_", "means_", "means_gpu_")):
            with_ = [statistics.mean(block[at] for block in cycle[arm]) for cycle in self.cycles]
            without = [statistics.mean(block[at] for block in cycle[against]) for cycle in self.cycles]
            if any(math.isnan(each) for each in with_):
                continue
            pairs = list(zip(with_, without, strict=True))
            found[f"{name}ms_per_step_without"] = round(statistics.median(without), 4)
            found[f"{name}us_per_step"] = spread([1e3 * (one - other) for one, other in pairs])
            found[f"{name}throughput_loss_pct"] = spread([100 * (1 - other / one) for one, other in pairs], 4)
        return found
