"""Which frames a model remembers, and where: a sink that stays and a window that rolls (LongLive §3.1, §3.3).

Integers only, counted in frames. `cache.py` holds the tensors and obeys.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive frames of a call that lie in consecutive slots."""

    frame: int  # first frame, counted within the call
    slot: int
    count: int


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the frames of one call lie in the window, and what they may attend. Counted in frames."""

    start: int  # temporal position of the call's first frame
    frames: int
    runs: tuple[Run, ...]  # what is written; frames in no run are only queries
    filled: int  # slots 0..filled are attended
    sink_start: int  # unbounded positions: temporal position of slot 0, just before the ring; 0 until the window rolls

    @property
    def slots(self) -> set[int]:
        return set(chain.from_iterable(range(run.slot, run.slot + run.count) for run in self.runs))


@dataclass(frozen=True, slots=True)
class Window:
    """`sink` slots for the first frames of a video, then a ring of `recent` slots.

    A frame's slot follows from its number alone, so a rebuilt memory holds every frame where it lay before.
    """

    sink: int
    recent: int

    @property
    def size(self) -> int:
        return self.sink + self.recent

    def slot(self, frame: int) -> int:
        return frame if frame < self.sink else self.sink + (frame - self.sink) % self.recent

    def frames_in_order(self, end: int) -> list[int]:
        """The slots of a video of `end` frames in the order of time: sink, then oldest to newest."""
        oldest = max(self.sink, end - self.recent)
        return [*range(min(self.sink, end)), *(self.slot(frame) for frame in range(oldest, end))]

    def block(self, start: int, frames: int) -> Placement:
        """A block: it replaces the oldest frames of the ring, and itself when it is passed again."""
        return self.place(start, frames, [self.slot(start + frame) for frame in range(frames)])

    def recache(self, end: int, *, renew: bool, whole: bool = False) -> Placement:
        """The newest frames of a video of `end`, to be remembered under a new prompt (§3.1).

        While the window reaches back to the first frame everything is rewritten. Beyond, the sink is kept unless
        `renew`ed by the oldest frames of the window. Those oldest frames are dead work for a kept sink (their keys
        are never stored); `whole` passes them all the same, as the reference does.
        """
        if end <= self.size:
            return self.place(0, end, list(range(end)))
        ring = [self.slot(frame) for frame in range(end - self.recent, end)]
        if renew:
            return self.place(end - self.size, self.size, [*range(self.sink), *ring])
        unstored = self.sink if whole else 0
        return self.place(end - self.recent - unstored, self.recent + unstored, [None] * unstored + ring)

    def place(self, start: int, frames: int, slots: Sequence[int | None]) -> Placement:
        """A call whose frames are written to `slots`; those of None are only queries."""
        runs: list[Run] = []
        for frame, slot in enumerate(slots):
            if slot is None:
                continue
            last = runs[-1] if runs else None
            if last and (last.frame + last.count, last.slot + last.count) == (frame, slot):
                runs[-1] = Run(last.frame, last.slot, last.count + 1)
            else:
                runs.append(Run(frame, slot, 1))
        end = start + frames
        return Placement(start, frames, tuple(runs), min(end, self.size), max(0, end - self.size))
