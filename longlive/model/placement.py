"""Where a KV cache stores the frames of a pass, and what they may attend. Integers only, counted in frames."""

from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive frames of a pass in consecutive slots."""

    frame: int  # first frame, counted within the pass
    slot: int
    count: int


class Run(NamedTuple):
    """Consecutive slots."""

    slot: int
    count: int


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the frames of one pass are in the window, and what they may attend. Counted in frames."""

    start: int  # temporal position of the pass's first frame
    frames: int
    spans: tuple[Span, ...]  # what is written; other frames are in no slot
    attended: tuple[Run, ...]  # slots, those just written included
    sink_start: int  # where a sink that moves is attended
    passing: bool = False  # whether frames in no slot are attended, too; else they are only queries

    @property
    def slots(self) -> set[int]:
        """The slots that are written."""
        return set(chain.from_iterable(range(span.slot, span.slot + span.count) for span in self.spans))

    @property
    def attended_slots(self) -> set[int]:
        return set(chain.from_iterable(range(run.slot, run.slot + run.count) for run in self.attended))
