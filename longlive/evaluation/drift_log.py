"""The drift of a video that grows fragment by fragment, measured on the pixels of the fragments themselves."""

from collections.abc import Iterable
from itertools import pairwise

from ..session.boundary import Boundary
from ..session.session import Session
from ..units import count_pixel_frames
from ..video.fragments import Encoding, Fragment, decode_fragment
from .drift import BlockDrift, DriftMeter, SwitchMark, list_warnings

COLUMNS = ("frame", "frames", "deviation", "trait", "motion", "jump", "switch", "fault")  # of a row for pages


class DriftLog:
    """The numbers of every fragment; can be rewound.

    It takes the place of a file under a `VideoRenderer`, to measure a video without writing it.
    """

    def __init__(self, encoding: Encoding | None = None) -> None:
        self.encoding = encoding or Encoding()
        self.blocks: list[BlockDrift | None] = []  # of each fragment; None for one without pixel frames
        self._meters = [DriftMeter(float(self.encoding.fps))]  # before the first fragment, and after each

    @property
    def num_frames(self) -> int:
        """Pixel frames so far."""
        return self._meters[-1].num_frames

    @property
    def warnings(self) -> list[str]:
        """What went wrong, once for each time that it began."""
        return list_warnings(self.measured)

    @property
    def measured(self) -> list[BlockDrift]:
        return [block for block in self.blocks if block]

    def expect(self, marks: Iterable[SwitchMark]) -> None:
        """Say where the prompt changes in fragments to come; this replaces what was said before."""
        self._meters[-1].expect(marks)

    def append(self, fragment: Fragment, key: str = "") -> None:
        """Measure the next fragment; the key is not needed."""
        meter = self._meters[-1].copy()
        self.blocks.append(meter.add(decode_fragment(fragment)) if fragment.num_frames else None)
        self._meters.append(meter)

    def rewind(self, num_fragments: int) -> None:
        """Drop all fragments but the first ones."""
        del self.blocks[num_fragments:], self._meters[num_fragments + 1 :]

    def as_dict(self) -> dict:
        """Convert to plain JSON values: a short row for each fragment, and the newest warning."""
        warnings = self.warnings
        return {
            "fps": float(self.encoding.fps),
            "columns": list(COLUMNS),
            "rows": [make_row(block) for block in self.measured],
            "warn": warnings[-1] if warnings else "",
        }


def make_row(block: BlockDrift) -> list:
    """Make the short form of a block's numbers, in the order of COLUMNS."""
    deviations = block.deviations or {}
    farthest = max(deviations, key=lambda name: abs(deviations[name]), default=None)
    deviation = None if farthest is None else round(deviations[farthest], 2)
    jump = None if block.jump is None else round(block.jump, 1)
    fault = block.fault and block.fault.value
    return [
        block.first_frame, block.num_frames, deviation, farthest, round(block.motion, 1), jump, block.has_switch, fault
    ]  # fmt: skip


def mark_switches(session: Session) -> list[SwitchMark]:
    """List where the picture of a session may change: at every change of its prompt, and at every cut."""
    changes = session.list_changes()
    return [
        SwitchMark(count_pixel_frames(change.frame), change.boundary)
        for before, change in pairwise(changes)
        if change.boundary is Boundary.CUT or change.prompt.digest != before.prompt.digest
    ]
