"""Which frames the KV cache holds, and in which slots: a sink that stays, a window that rolls (LongLive §3.1, §3.3).

Integers only, counted in frames. `kv_cache.py` holds the tensors. `rolling_window.py` is the window of a rolling video.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ..model.placement import Placement, Run, Span


@dataclass(frozen=True, slots=True)
class Window:
    """`sink` slots for the first frames of a video, then a ring of `recent` slots.

    Frames are numbered from the last cut. A frame's slot follows from its number alone, so a rebuilt KV cache holds
    every frame in the same slot.
    """

    sink: int
    recent: int

    @property
    def size(self) -> int:
        return self.sink + self.recent

    def find_slot(self, frame: int) -> int:
        return frame if frame < self.sink else self.sink + (frame - self.sink) % self.recent

    def list_slots(self, end: int) -> list[int]:
        """Return the slots of a video of `end` frames in the order of time: sink, then oldest to newest."""
        oldest = max(self.sink, end - self.recent)
        return [*range(min(self.sink, end)), *(self.find_slot(frame) for frame in range(oldest, end))]

    def place_block(self, start: int, frames: int) -> Placement:
        """Place a block, which must fit the ring: it overwrites the oldest frames there.

        A second pass over the block overwrites the first.
        """
        assert frames <= self.recent, f"a block of {frames} frames does not fit a ring of {self.recent}"
        return self.place_frames(start, frames, [self.find_slot(start + frame) for frame in range(frames)])

    def place_clean(self, start: int, frames: int) -> Placement:
        """Place a finished block: where its denoising passes were."""
        return self.place_block(start, frames)

    def list_needed_slots(self, end: int, block: int) -> set[int]:
        """List the slots that must be right in all layers before a block at frame `end` is made."""
        upcoming = self.place_block(end, block)
        return upcoming.attended_slots - upcoming.slots

    def place_recache(self, end: int, *, renew: bool, whole: bool = False) -> Placement:
        """Place the newest frames of a video of `end` frames for a recache (§3.1).

        While the window reaches back to the first frame, every slot is rewritten. Later the sink is kept, or `renew`
        writes the window's oldest frames into it. With the sink kept, those frames have no slot: they would only be
        queries, so they are not passed. `whole` passes them, as the reference does.
        """
        if end <= self.size:
            return self.place_frames(0, end, list(range(end)))
        ring = [self.find_slot(frame) for frame in range(end - self.recent, end)]
        if renew:
            return self.place_frames(end - self.size, self.size, [*range(self.sink), *ring])
        unstored = self.sink if whole else 0
        return self.place_frames(end - self.recent - unstored, self.recent + unstored, [None] * unstored + ring)

    def place_frames(self, start: int, frames: int, slots: Sequence[int | None]) -> Placement:
        """Place the frames of a pass in `slots`; frames with the slot None are queries only."""
        end = start + frames
        attended = Run(0, min(end, self.size))
        return Placement(start, frames, join_spans(slots), (attended,), max(0, end - self.size))


def join_spans(slots: Sequence[int | None]) -> tuple[Span, ...]:
    """Join the slots of the frames of a pass to spans; None is no slot."""
    spans: list[Span] = []
    for frame, slot in enumerate(slots):
        if slot is None:
            continue
        last = spans[-1] if spans else None
        if last and (last.frame + last.count, last.slot + last.count) == (frame, slot):
            spans[-1] = Span(last.frame, last.slot, last.count + 1)
        else:
            spans.append(Span(frame, slot, 1))
    return tuple(spans)
