"""The drift of a video that grows fragment by fragment, measured on the pixels of the fragments themselves."""

from collections.abc import Callable, Iterable
from itertools import pairwise

from torch import Tensor

from ..session.boundary import Boundary
from ..session.session import Session
from ..units import count_pixel_frames
from ..video.fragments import Encoding, Fragment, decode_fragment
from .drift import BlockDrift, DriftMeter, SwitchMark, list_warnings
from .report import Cell, Table

COLUMNS = ("frame", "frames", "deviation", "trait", "motion", "jump", "switch", "fault")  # of a row for pages


KEPT_STATES, KEPT_APART = 32, 32  # of the meter: all of the newest fragments, and before them some fragments apart


class DriftLog:
    """The numbers of every fragment; can be rewound.

    It takes the place of a file under a `VideoRenderer`, to measure a video without writing it.
    """

    def __init__(
        self, encoding: Encoding | None = None, *, watch: Callable[[Tensor, int], object] = lambda pixels, first: None
    ) -> None:
        """`watch` is called with the pixel frames [F, H, W, 3] of each fragment and the number of the first."""
        self.encoding, self.watch = encoding or Encoding(), watch
        self.blocks: list[BlockDrift | None] = []  # of each fragment; None for one without pixel frames
        self._meters = {0: DriftMeter(float(self.encoding.fps))}  # by how many fragments they have measured

    @property
    def num_frames(self) -> int:
        """Pixel frames so far."""
        return self._meters[len(self.blocks)].num_frames

    @property
    def warnings(self) -> list[str]:
        """What went wrong, once for each time that it began."""
        return list_warnings(self.measured)

    @property
    def measured(self) -> list[BlockDrift]:
        return [block for block in self.blocks if block]

    def expect(self, marks: Iterable[SwitchMark]) -> None:
        """Say where the prompt changes in fragments to come; this replaces what was said before."""
        self._meters[len(self.blocks)].expect(marks)

    def append(self, fragment: Fragment, key: str = "") -> None:
        """Measure the next fragment; the key is not needed."""
        meter = self._meters[len(self.blocks)].copy()
        block = None
        if fragment.num_frames:
            bytes_FHW3 = decode_fragment(fragment)
            self.watch(bytes_FHW3, meter.num_frames)
            block = meter.add(bytes_FHW3)
        self.blocks.append(block)
        self._meters[len(self.blocks)] = meter
        old = len(self.blocks) - KEPT_STATES
        if old % KEPT_APART:
            self._meters.pop(old, None)

    def rewind(self, num_fragments: int) -> int:
        """Drop all fragments but the first ones; return how many are left.

        A few more may be dropped far from the end, where not every state is kept; those have to be appended again.
        """
        kept = max(number for number in self._meters if number <= num_fragments)
        del self.blocks[kept:]
        self._meters = {number: meter for number, meter in self._meters.items() if number <= kept}
        return kept

    def as_dict(self) -> dict:
        """Convert to plain JSON values: a short row for each fragment, and the newest warning."""
        warnings = self.warnings
        return {
            "fps": float(self.encoding.fps),
            "columns": list(COLUMNS),
            "rows": [make_row(block) for block in self.measured],
            "warn": warnings[-1] if warnings else "",
        }


def tabulate_blocks(blocks: Iterable[BlockDrift], fps: float) -> Table:
    """Tabulate all numbers of some blocks, a row for each."""
    rows: list[tuple[Cell, ...]] = [
        (
            block.first_frame / fps,
            *block.traits.values(),
            block.motion,
            block.from_start,
            block.from_before,
            block.jump,
            block.deviation,
            block.fault or ("switch" if block.has_switch else ""),
        )
        for block in blocks
    ]
    names = ("bright", "contrast", "satur", "sharp", "red", "blue", "motion", "start", "before", "jump", "drift")
    columns = (("s", ".2f"), *((name, ".1f") for name in names), ("", ""))
    note = (
        "Brightness, contrast, saturation, sharpness, how much red and blue exceed luma, motion (the mean step from "
        "one pixel frame to the next), and the distances of the mean picture from that of the first second and of the "
        "row before are of 255. Jump: the longest step as a multiple of the usual one. Drift: how far the farthest of "
        "the first six is outside of the range of the first seconds, as a multiple of its limit."
    )
    return Table("Blocks", columns, tuple(rows), note)


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
