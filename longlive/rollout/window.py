"""Which frames the KV cache holds, and in which slots: a sink that stays, a window that rolls (LongLive §3.1, §3.3).

Integers only, counted in frames. `kv_cache.py` holds the tensors.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ..model.placement import Placement, Span


@dataclass(frozen=True, slots=True)
class Window:
    """`sink` slots for the first frames of a video, then a ring of `recent` slots.

    A frame's slot follows from its number alone, so a rebuilt KV cache holds every frame in the same slot.
    """

    sink: int
    recent: int

    @property
    def size(self) -> int:
        return self.sink + self.recent

    def slot(self, frame: int) -> int:
        return frame if frame < self.sink else self.sink + (frame - self.sink) % self.recent

    def slots_in_order(self, end: int) -> list[int]:
        """Return the slots of a video of `end` frames in the order of time: sink, then oldest to newest."""
        oldest = max(self.sink, end - self.recent)
        return [*range(min(self.sink, end)), *(self.slot(frame) for frame in range(oldest, end))]

    def block(self, start: int, frames: int) -> Placement:
        """Place a block: it replaces the oldest frames of the ring, or itself if it is passed again."""
        return self.place(start, frames, [self.slot(start + frame) for frame in range(frames)])

    def recache(self, end: int, *, renew: bool, whole: bool = False) -> Placement:
        """Place the newest frames of a video of `end` frames for a recache (§3.1).

        While the window reaches back to the first frame, everything is rewritten. Later the sink is kept, unless
        `renew` rewrites it with the oldest frames of the window. If the sink is kept, the keys of those oldest frames
        are never stored, so they are left out; `whole` includes them, as the reference does.
        """
        if end <= self.size:
            return self.place(0, end, list(range(end)))
        ring = [self.slot(frame) for frame in range(end - self.recent, end)]
        if renew:
            return self.place(end - self.size, self.size, [*range(self.sink), *ring])
        unstored = self.sink if whole else 0
        return self.place(end - self.recent - unstored, self.recent + unstored, [None] * unstored + ring)

    def place(self, start: int, frames: int, slots: Sequence[int | None]) -> Placement:
        """Place the frames of a pass in `slots`; frames with the slot None are queries only."""
        spans: list[Span] = []
        for frame, slot in enumerate(slots):
            if slot is None:
                continue
            last = spans[-1] if spans else None
            if last and (last.frame + last.count, last.slot + last.count) == (frame, slot):
                spans[-1] = Span(last.frame, last.slot, last.count + 1)
            else:
                spans.append(Span(frame, slot, 1))
        end = start + frames
        return Placement(start, frames, tuple(spans), min(end, self.size), max(0, end - self.size))
