"""The packets of a timeline, read with Perfetto's own descriptors and nothing of what wrote them.

Perfetto puts up with much and shows something. Here packets that need a name that was not interned, ends without
beginnings, slices that end after what holds them, moments that go backwards and flows with one end are all failures.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as trace

Event = trace.TrackEvent
Value = int | float | str | bool


@dataclass
class Slice:
    """A slice; an instant has no duration, and says so."""

    name: str
    category: str
    track: int
    begin: int
    arguments: dict[str, Value]
    flows: list[int]
    depth: int
    parent: Slice | None
    is_instant: bool
    end: int = -1


@dataclass
class Track:
    name: str
    parent: int
    process: str
    pid: int | None
    unit: str | None


@dataclass
class Timeline:
    tracks: dict[int, Track] = field(default_factory=dict)
    slices: list[Slice] = field(default_factory=list)
    counters: dict[int, list[tuple[int, float]]] = field(default_factory=lambda: defaultdict(list))

    def flows(self) -> dict[int, list[Slice]]:
        ends = defaultdict(list)
        for one in self.slices:
            for flow in one.flows:
                ends[flow].append(one)
        return ends


def packets(data: bytes) -> Iterator[Any]:
    for packet in trace.Trace.FromString(data).packet:
        if packet.HasField("compressed_packets"):
            yield from trace.Trace.FromString(zlib.decompress(packet.compressed_packets)).packet
        else:
            yield packet


class Interned:
    """What numbers stand for."""

    def __init__(self) -> None:
        self.of: dict[str, dict[int, str]] = defaultdict(dict)

    def take(self, data: Any) -> None:
        for kind in ("event_categories", "event_names", "debug_annotation_names"):
            for entry in getattr(data, kind):
                assert entry.iid not in self.of[kind], "interned twice"
                self.of[kind][entry.iid] = entry.name
        for entry in data.debug_annotation_string_values:
            self.of["debug_annotation_string_values"][entry.iid] = entry.str.decode()

    def arguments(self, event: Any) -> dict[str, Value]:
        found: dict[str, Value] = {}
        for one in event.debug_annotations:
            name = self.of["debug_annotation_names"][one.name_iid]
            assert name not in found
            kind = one.WhichOneof("value")
            value = getattr(one, kind)
            is_iid = kind == "string_value_iid"
            found[name] = self.of["debug_annotation_string_values"][value] if is_iid else value
        return found


def read(path: Path) -> Timeline:
    timeline = Timeline()
    interned = Interned()
    open_slices: dict[int, list[Slice]] = defaultdict(list)
    last: dict[int, int] = defaultdict(int)
    for number, packet in enumerate(packets(path.read_bytes())):
        assert packet.trusted_packet_sequence_id == 1
        cleared = packet.sequence_flags & trace.TracePacket.SEQ_INCREMENTAL_STATE_CLEARED
        assert bool(cleared) == (number == 0), "only the first packet clears what is interned"
        interned.take(packet.interned_data)
        if packet.HasField("track_descriptor"):
            describe(timeline, packet.track_descriptor)
        if not packet.HasField("track_event"):
            continue
        event, now = packet.track_event, packet.timestamp
        uuid = event.track_uuid
        assert uuid in timeline.tracks, "a track is described before it is used"
        assert now >= last[uuid], f"{timeline.tracks[uuid].name} goes backwards"
        last[uuid] = now
        stack = open_slices[uuid]
        if event.type == Event.TYPE_COUNTER:
            kind = event.WhichOneof("counter_value_field")
            timeline.counters[uuid].append((now, getattr(event, kind)))
            continue
        if event.type == Event.TYPE_SLICE_END:
            assert stack, "an end has a beginning"
            stack.pop().end = now
            continue
        assert event.type in (Event.TYPE_SLICE_BEGIN, Event.TYPE_INSTANT)
        (category,) = event.category_iids
        one = Slice(
            name=interned.of["event_names"][event.name_iid] if event.name_iid else event.name,
            category=interned.of["event_categories"][category],
            track=uuid,
            begin=now,
            arguments=interned.arguments(event),
            flows=list(event.flow_ids),
            depth=len(stack),
            parent=stack[-1] if stack else None,
            is_instant=event.type == Event.TYPE_INSTANT,
        )
        timeline.slices.append(one)
        if one.is_instant:
            one.end = now
        else:
            stack.append(one)
    assert not any(open_slices.values()), "every slice ends"
    for one in timeline.slices:
        assert one.begin <= one.end
        assert one.parent is None or one.parent.begin <= one.begin <= one.end <= one.parent.end, one
    for flow, ends in timeline.flows().items():
        assert len(ends) == 2, f"flow {flow} has {len(ends)} ends"
    return timeline


def describe(timeline: Timeline, track: Any) -> None:
    assert track.uuid not in (0, *timeline.tracks), "described twice"
    assert track.parent_uuid in (0, *timeline.tracks), "a parent is described first"
    parent = timeline.tracks.get(track.parent_uuid)
    process = track.process.process_name if track.HasField("process") else parent.process if parent else ""
    pid = track.process.pid if track.HasField("process") else parent.pid if parent else None
    unit = track.counter.unit_name if track.HasField("counter") else None
    name = process if track.HasField("process") else track.name
    timeline.tracks[track.uuid] = Track(name, track.parent_uuid, process, pid, unit)
