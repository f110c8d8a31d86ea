"""Which passes write a memory, and which of them must be made again to rebuild it (design: `docs/architecture.md`).

A memory is never stored: latents and prompts determine it. Each pass that is made again is the very call made the
first time, with the same shape, slots and prompt, so a rebuilt memory is equal to the lost one bit for bit.
Pure integers; knows no tensor.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from .config import RolloutConfig
from .timeline import Boundary
from .window import Placement, Window


@dataclass(frozen=True, slots=True)
class Call:
    """One pass over clean latents that writes the memory: a finished block, or a recache."""

    segment: int  # index of the prompt it is made under
    origin: int  # the frame that positions count from: the last discard, or 0
    place: Placement
    is_recache: bool


def calls_before(config: RolloutConfig, switches: Sequence[tuple[int, Boundary]], end: int) -> Iterator[Call]:
    """The passes that wrote the memory of a video of `end` frames, newest first, back to the last discard.

    `switches` are (first frame, boundary) of every segment, rising; the first begins the video.
    """
    window = Window(config.sink, config.recent)
    segment = len(switches) - 1
    origin = max(frame for frame, boundary in switches if frame == 0 or boundary is Boundary.DISCARD)
    for frame in range(end, origin, -config.block):
        begins, boundary = switches[segment]
        if begins == frame:
            if boundary in (Boundary.RECACHE, Boundary.RENEW):
                renew = boundary is Boundary.RENEW
                yield Call(segment, origin, window.recache(frame - origin, renew=renew), is_recache=True)
            segment -= 1
        start = frame - config.block
        yield Call(segment, origin, window.block(start - origin, config.block), is_recache=False)


def needed(newest_first: Iterable[Call], upcoming: Placement, num_layers: int, *, made: Call | None) -> list[Call]:
    """Those of the calls, oldest first, that the block at `upcoming` depends on and that are not `made` yet.

    A call's keys in layer n depend on what it attends in the layers below n only, so need fades by one layer a call
    and a rebuild ends after as many calls as there are layers, save for the sink. `made` is the newest call the
    memory holds; whatever that one and those before it wrote is there.
    """
    top = num_layers - 1
    need = {slot: top for slot in range(upcoming.filled) if slot not in upcoming.slots}  # slot: highest layer needed
    chosen = []
    for call in newest_first:
        if not need or call == made:
            break
        slots = call.place.slots
        layer = max((need.pop(slot) for slot in slots if slot in need), default=None)
        if layer is None:
            continue
        chosen.append(call)
        if layer > 0:
            for slot in set(range(call.place.filled)) - slots:
                need[slot] = max(need.get(slot, 0), layer - 1)
    return chosen[::-1]
