"""Lists the passes that wrote a KV cache, and chooses those to make or to repeat (design: `docs/architecture.md`).

A KV cache is never stored: latents and prompts determine it. A repeated pass has the shape, slots and prompt of the
first time, so a rebuilt cache equals the lost one bit for bit. `Sampler` makes the passes; here are only integers.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from ..config import RolloutConfig
from ..model.placement import Placement
from ..session.boundary import Boundary
from .rolling_window import make_window


@dataclass(frozen=True, slots=True)
class CleanPass:
    """The pass that writes a finished block's keys and values, at the context timestep."""

    segment: int  # index of the prompt of the pass
    origin: int  # the frame that positions count from: the last cut, or 0
    place: Placement


@dataclass(frozen=True, slots=True)
class Recache:
    """The pass over the window under a new prompt (LongLive §3.1)."""

    segment: int
    origin: int
    place: Placement
    end: int  # finished frames since the origin
    renew: bool  # whether the oldest frames of the window become the sink


CachePass = CleanPass | Recache
"""A pass that writes clean latents into the KV cache."""


def list_cache_passes(config: RolloutConfig, switches: Sequence[tuple[int, Boundary]], end: int) -> Iterator[CachePass]:
    """Yield the passes that wrote the KV cache of a video of `end` frames, newest first, back to the last cut.

    `switches` are (first frame, boundary) of every segment, rising; the first begins the video.
    """
    window = make_window(config)
    segment = len(switches) - 1
    origin = max(frame for frame, boundary in switches if frame == 0 or boundary is Boundary.CUT)
    for frame in range(end, origin, -config.block):
        begins, boundary = switches[segment]
        if begins == frame:
            if boundary in (Boundary.RECACHE, Boundary.RENEW):
                renew, finished = boundary is Boundary.RENEW, frame - origin
                yield Recache(segment, origin, window.place_recache(finished, renew=renew), finished, renew)
            segment -= 1
        start = frame - config.block
        yield CleanPass(segment, origin, window.place_clean(start - origin, config.block))


def choose_missing_passes(
    newest_first: Iterable[CachePass], needed_slots: Iterable[int], num_layers: int, *, made: CachePass | None
) -> list[CachePass]:
    """Choose the passes, oldest first, that `needed_slots` depend on in all layers and that are not in the cache yet.

    Keys in layer n of a pass depend only on what the pass attends in the layers below n. So what a pass attended is
    needed in one layer less than the pass itself, and the walk ends: without a switch after
    (layers (recent - block) + sink) / block passes. `made` is the newest pass in the cache, which also holds what
    earlier passes wrote.
    """
    top = num_layers - 1
    need = dict.fromkeys(needed_slots, top)  # slot: highest layer needed
    chosen = []
    for each in newest_first:
        if not need or each == made:
            break
        slots = each.place.slots
        layer = max((need.pop(slot) for slot in slots if slot in need), default=None)
        if layer is None:
            continue
        chosen.append(each)
        if layer > 0:
            for slot in each.place.attended_slots - slots:
                need[slot] = max(need.get(slot, 0), layer - 1)
    return chosen[::-1]


def count_rebuild_passes(
    config: RolloutConfig, switches: Sequence[tuple[int, Boundary]], end: int, num_layers: int
) -> int:
    """Count the passes that make the KV cache for the block after `end` frames from nothing."""
    origin = max(frame for frame, boundary in switches if frame == 0 or boundary is Boundary.CUT)
    needed = make_window(config).list_needed_slots(end - origin, config.block)
    return len(choose_missing_passes(list_cache_passes(config, switches, end), needed, num_layers, made=None))
