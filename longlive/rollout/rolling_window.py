"""Which frames a rolling video keeps and attends (Rolling Forcing, arXiv 2509.25161; as its released code does it).

Blocks are denoised jointly, each at its own level of noise. A joint pass attends the sink, turned to just before the
other finished frames, some of the newest of these, and its own frames, which are kept nowhere. The clean pass of a
finished block attends the newest frames; its sink is among them only while the video is no longer than the window.
Integers only, counted in frames.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from ..config import RolloutConfig, RolloutKind
from ..model.placement import Placement, Run
from .window import Window, join_spans


@dataclass(frozen=True, slots=True)
class RollingWindow(Window):
    """`sink` slots for the first frames of a video, then a ring of `recent` slots; a pass attends `budget` frames."""

    budget: int

    def place_block(self, start: int, frames: int) -> Placement:
        """Place the blocks in flight, which begin at frame `start`: they attend each other and are in no slot."""
        oldest = max(self.sink, start - max(0, self.budget - self.sink - frames))
        past = [*range(self.sink), *range(oldest, start)] if start else []
        return Placement(start, frames, (), self._list_runs(past), start - len(past), passing=True)

    def place_clean(self, start: int, frames: int) -> Placement:
        """Place a finished block: it attends all frames of a short video, the newest ones of a longer one."""
        end = start + frames
        oldest = 0 if min(end, self.size) <= self.budget else end - self.budget
        return self._place_kept(start, frames, range(oldest, end))

    def place_recache(self, end: int, *, renew: bool, whole: bool = False) -> Placement:
        """Place the newest frames of a video of `end` frames for a recache: those that the next clean pass attends.

        There is no reference for it. While the video is no longer than the window, every slot is rewritten. Later the
        sink is kept and attended no more, or `renew` writes the frames before the others into it.
        """
        if end <= self.budget:
            return self._place_kept(0, end, range(end))
        first = end - (self.budget - self.sink)
        if not renew:
            return self._place_kept(first, end - first, range(first, end))
        start = first - self.sink
        slots = [*range(self.sink), *map(self.find_slot, range(first, end))]
        return Placement(start, end - start, join_spans(slots), join_runs(slots), start)

    def list_needed_slots(self, end: int, block: int) -> set[int]:
        """List the slots that must be right in all layers before a block after `end` frames is finished.

        They are those that the last pass over the blocks in flight attends, when only one is left.
        """
        newest = range(max(self.sink, end - (self.budget - self.sink - block)), end)
        return {*range(min(self.sink, end)), *map(self.find_slot, newest)}

    def _place_kept(self, start: int, frames: int, attended: range) -> Placement:
        """Place frames that are kept. A sink among those attended is where it was written."""
        own = [self.find_slot(frame) for frame in range(start, start + frames)]
        return Placement(start, frames, join_spans(own), self._list_runs(attended), 0)

    def _list_runs(self, frames: Iterable[int]) -> tuple[Run, ...]:
        return join_runs(map(self.find_slot, frames))


def join_runs(slots: Iterable[int]) -> tuple[Run, ...]:
    """Join slots to runs, in the order of slots."""
    return tuple(Run(span.slot, span.count) for span in join_spans(sorted(slots)))


def make_window(config: RolloutConfig) -> Window:
    """Make the window of a kind of video. A rolling one keeps a window of frames beside its sink."""
    if config.kind is RolloutKind.ROLLING:
        return RollingWindow(config.sink, config.window, config.window)
    return Window(config.sink, config.recent)
