"""Where a KV cache stores the frames of a pass, and what they may attend. Integers only, counted in frames."""

from dataclasses import dataclass
from itertools import chain


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive frames of a pass in consecutive slots."""

    frame: int  # first frame, counted within the pass
    slot: int
    count: int


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the frames of one pass are in the window, and what they may attend. Counted in frames."""

    start: int  # temporal position of the pass's first frame
    frames: int
    spans: tuple[Span, ...]  # what is written; frames in no span are only queries
    filled: int  # the first `filled` slots are attended
    sink_start: int  # where unbounded positions put the sink: just before the ring; 0 until the window rolls

    @property
    def slots(self) -> set[int]:
        return set(chain.from_iterable(range(span.slot, span.slot + span.count) for span in self.spans))
