"""Measures how a video drifts from its first seconds, from its pixel frames, block by block while it is made.

The numbers below have their reasons in docs/drift.md. Memory does not grow with the video.

Dimension key: F pixel frames, H rows, W columns, T traits.
"""

import copy
import math
import statistics
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import torch
import torch.nn.functional as nnf
from torch import Tensor

from ..session.boundary import Boundary
from ..units import FPS
from .pictures import THUMBNAIL, TRAITS, measure_steps, measure_traits, shrink_roughly

LIMITS = {name: 20.0 if name == "sharpness" else 8.0 for name in TRAITS}  # of 255, but sharpness in percent
REFERENCE_SECONDS = 3.0  # of a segment, whose range is allowed
SETTLING_SECONDS = 1.0  # after a switch, when everything may change
SETTLING_SECONDS_OF_KEEP = 3.25  # the same, and the time until the latents before the switch have left the window
FREEZE_SECONDS = 0.75  # that motion is averaged over
FREEZE_SHARE = 0.25  # of the motion with which a segment begins; with less it stands still
MIN_USUAL_MOTION = 0.4  # of 255; with a quarter of it any video stands still
JUMP_LIMIT = 4.0  # times the usual step
MIN_USUAL_STEP = 1.0  # of 255; smaller steps are noise
MIN_STEPS = 8  # before a step can be unusual
CURE = "rewind to before that and take another seed or prompt"
TRAIT_WORDS = {  # for more and for less of a trait
    "brightness": ("brighter", "darker"),
    "contrast": ("richer in contrast", "flatter"),
    "saturation": ("more saturated", "less saturated"),
    "sharpness": ("sharper", "softer"),
    "redness": ("redder", "less red"),
    "blueness": ("bluer", "less blue"),
}


class Fault(StrEnum):
    """What is wrong with a pixel frame."""

    JUMP = "jump"  # a step far beyond the usual, where the prompt does not change
    FREEZE = "freeze"  # the motion has gone
    DRIFT = "drift"  # a trait has left the range of the first seconds


@dataclass(frozen=True, slots=True)
class BlockDrift:
    """The numbers of some successive pixel frames: those of a block, or a second of a video file."""

    first_frame: int  # pixel frame
    num_frames: int
    traits: dict[str, float]  # mean of each, of 255
    motion: float  # mean step from pixel frame to pixel frame, of 255
    from_start: float  # mean absolute difference of the mean picture from that of the first second, of 255
    from_before: float | None  # the same from that of the block before; None for the first
    motion_share: float | None  # the least, as a share of that with which the segment begins
    jump: float | None  # the longest step as a multiple of the usual one; None while there is no usual one
    deviations: dict[str, float] | None  # of each trait from its range, in limits; None soon after a switch
    has_switch: bool  # whether the prompt changes within
    fault: Fault | None  # the most striking one
    warning: str  # about it

    @property
    def deviation(self) -> float | None:
        """The largest deviation of a trait; beyond 1 it is a fault."""
        return max(map(abs, self.deviations.values())) if self.deviations else None

    def as_dict(self) -> dict:
        """Convert to plain JSON values, rounded."""
        numbers = {"motion": self.motion, "from_start": self.from_start, "from_before": self.from_before}
        return {
            "frame": self.first_frame,
            "frames": self.num_frames,
            **shorten_values({**self.traits, **numbers, "motion_share": self.motion_share, "jump": self.jump}),
            "deviations": self.deviations and shorten_values(self.deviations),
            "switch": self.has_switch,
            "fault": self.fault and self.fault.value,
            "warn": self.warning,
        }


class SwitchMark(NamedTuple):
    """Where the prompt changes, so that the picture may."""

    frame: int  # pixel frame
    boundary: Boundary


class Moment(NamedTuple):
    """What is known of one pixel frame."""

    frame: int
    motion_share: float | None
    jump: float | None
    deviations: list[float] | None  # of the TRAITS
    is_switch: bool
    fault: Fault | None


class DriftMeter:
    """Measures a video as its pixel frames come.

    What a switch changes is no drift: the range of the first seconds moves along with it. How a video is split into
    calls of `add` changes no verdict on a pixel frame.
    """

    def __init__(self, fps: float = FPS) -> None:
        self.fps = fps
        self.num_frames = 0
        second = max(1, round(fps))
        self._levels = LevelJudge(second, round(REFERENCE_SECONDS * fps))
        self._motion = MotionJudge(second, max(1, round(FREEZE_SECONDS * fps)))
        self._marks: list[SwitchMark] = []  # to come
        self._judged_from = 0  # pixel frame
        self._thumbnails = ThumbnailMeter(second)
        self._last_13HW: Tensor | None = None  # picture

    def copy(self) -> "DriftMeter":
        """Copy the state, to return to it after a rewind. Tensors are shared, because they are never written."""
        pictures = [self._last_13HW, *vars(self._thumbnails).values()]
        return copy.deepcopy(self, {id(each): each for each in pictures if isinstance(each, Tensor)})

    def expect(self, marks: Iterable[SwitchMark]) -> None:
        """Say where the prompt changes in pixel frames to come; this replaces what was said before."""
        self._marks = sorted(mark for mark in marks if mark.frame >= max(1, self.num_frames))

    def add(self, bytes_FHW3: Tensor) -> BlockDrift:
        """Measure the next pixel frames, bytes, at least one."""
        small_F3HW = shrink_roughly(bytes_FHW3)
        steps = measure_steps(small_F3HW, self._last_13HW).tolist()
        self._last_13HW = small_F3HW[-1:].byte()
        traits_FT = measure_traits(bytes_FHW3)
        moments = [self._measure_frame(*numbers) for numbers in zip(traits_FT.tolist(), steps, strict=True)]
        from_start, from_before = self._thumbnails.add(small_F3HW)
        fault, warning = self._describe_worst(moments)
        return BlockDrift(
            moments[0].frame,
            len(moments),
            name_traits(traits_FT.mean(0).tolist()),
            statistics.fmean(steps),
            from_start,
            from_before,
            min((moment.motion_share for moment in moments if moment.motion_share is not None), default=None),
            max((moment.jump for moment in moments if moment.jump is not None), default=None),
            find_largest([moment.deviations for moment in moments if moment.deviations]),
            any(moment.is_switch for moment in moments),
            fault,
            warning,
        )

    def _measure_frame(self, traits: list[float], step: float) -> Moment:
        frame, is_switch = self.num_frames, False
        while self._marks and self._marks[0].frame == frame:
            is_switch = True
            self._begin_segment(self._marks.pop(0))
        self.num_frames += 1
        is_judged = frame >= self._judged_from
        jump, motion_share = self._motion.add(step if frame else None, is_judged=is_judged)
        deviations = self._levels.add(traits) if is_judged else None
        fault = None
        if is_judged and jump is not None and jump > JUMP_LIMIT:
            fault = Fault.JUMP
        elif motion_share is not None and motion_share < FREEZE_SHARE:
            fault = Fault.FREEZE
        elif deviations and max(map(abs, deviations)) > 1:
            fault = Fault.DRIFT
        return Moment(frame, motion_share, jump, deviations, is_switch, fault)

    def _begin_segment(self, mark: SwitchMark) -> None:
        settling = SETTLING_SECONDS_OF_KEEP if mark.boundary is Boundary.KEEP else SETTLING_SECONDS
        self._judged_from = mark.frame + round(settling * self.fps)
        self._levels.begin_segment()
        self._motion.begin_segment()

    def _describe_worst(self, moments: Sequence[Moment]) -> tuple[Fault | None, str]:
        """Choose the most striking fault of some moments, and describe it."""
        for fault in Fault:
            if found := [moment for moment in moments if moment.fault is fault]:
                return fault, f"{found[0].frame / self.fps:.2f} s: {describe_fault(fault, found)}; {CURE}"
        return None, ""


class LevelJudge:
    """Follows the traits through a video, without the steps that switches make.

    The level of a trait is its mean over a second, minus that of the segment's first second, plus what it had changed
    in segments before.
    """

    def __init__(self, second: int, reference: int) -> None:
        self.second, self.reference = second, reference  # pixel frames
        self._newest: deque[list[float]] = deque(maxlen=second)
        self._carried = [0.0] * len(TRAITS)
        self._levels = self._carried
        self._base: list[float] | None = None
        self._num_levels = 0  # of this segment
        self._low, self._high = self._carried, self._carried  # of the levels in the first seconds of this segment
        self._range: tuple[list[float], list[float]] | None = None  # of the first segment, once it has ended
        self._spread = [0.0] * len(TRAITS)  # the widest range of the first seconds of a segment

    def begin_segment(self) -> None:
        if self._base:
            self._range = self._range or (self._low, self._high)
            self._spread = [max(spread, high - low)
                            for spread, low, high in zip(self._spread, self._low, self._high, strict=True)]  # fmt: skip
        self._carried, self._base, self._num_levels = self._levels, None, 0
        self._newest.clear()

    def add(self, traits: list[float]) -> list[float] | None:
        """Return how far each trait is outside of its range, in limits; None in the first second of a segment."""
        self._newest.append([weigh_trait(name, value) for name, value in zip(TRAITS, traits, strict=True)])
        if len(self._newest) < self.second:
            return None
        means = [statistics.fmean(column) for column in zip(*self._newest, strict=True)]
        if self._base is None:
            self._base, self._low, self._high = means, self._carried, self._carried
        self._levels = [
            mean - base + carried for mean, base, carried in zip(means, self._base, self._carried, strict=True)
        ]
        if self._num_levels < self.reference - self.second:
            self._low, self._high = (
                [choose(pair) for pair in zip(known, self._levels, strict=True)]
                for choose, known in ((min, self._low), (max, self._high))
            )
        self._num_levels += 1
        return [self._measure_deviation(i) for i in range(len(TRAITS))]

    def _measure_deviation(self, i: int) -> float:
        """Measure how far the level of a trait is outside of its range, in limits.

        The range is that of the first segment, widened on both sides if a later segment varies more in itself.
        """
        lows, highs = self._range or (self._low, self._high)
        spread = max(self._spread[i], self._high[i] - self._low[i])
        wider = max(0.0, spread - (highs[i] - lows[i]))
        outside = max(0.0, self._levels[i] - highs[i] - wider) - max(0.0, lows[i] - wider - self._levels[i])
        return outside / LIMITS[TRAITS[i]]


class MotionJudge:
    """Compares steps with those before them."""

    def __init__(self, second: int, span: int) -> None:
        self.span = span  # pixel frames, of FREEZE_SECONDS
        self._newest: deque[float] = deque(maxlen=second)  # steps
        self._usual: float | None = None  # step before the switch
        self._num_judged = 0  # steps of the segment
        self._motion: float | None = None  # with which the segment begins

    def begin_segment(self) -> None:
        self._usual, self._num_judged, self._motion = self._find_usual_step(), 0, None

    def add(self, step: float | None, *, is_judged: bool) -> tuple[float | None, float | None]:
        """Return the step as a multiple of the usual one, and the motion as a share of that of the segment."""
        if step is None:
            return None, None
        usual = self._find_usual_step() if is_judged else self._usual
        self._newest.append(step)
        self._num_judged += is_judged
        return None if usual is None else step / usual, self._compare_motion()

    def _find_usual_step(self) -> float | None:
        enough = len(self._newest) >= MIN_STEPS
        return max(MIN_USUAL_STEP, statistics.median(self._newest)) if enough else None

    def _compare_motion(self) -> float | None:
        if len(self._newest) < self.span:
            return None
        motion = statistics.fmean(list(self._newest)[-self.span :])
        if self._motion is None and self._num_judged >= self.span:
            self._motion = motion
        return motion / max(MIN_USUAL_MOTION, self._motion or 0.0)


class ThumbnailMeter:
    """Compares the mean picture of some pixel frames with those before."""

    def __init__(self, second: int) -> None:
        self.second = second  # pixel frames
        self._sum_3HW = torch.zeros(3, THUMBNAIL, THUMBNAIL)  # of the first second
        self._num_summed = 0
        self._before_3HW: Tensor | None = None

    def add(self, small_F3HW: Tensor) -> tuple[float, float | None]:
        """Return the mean absolute differences from the first second and from the last call, of 255."""
        thumbnails_F3HW = nnf.interpolate(small_F3HW, (THUMBNAIL, THUMBNAIL), mode="area")
        mean_3HW, before_3HW = thumbnails_F3HW.mean(0), self._before_3HW
        taken_F3HW = thumbnails_F3HW[: self.second - self._num_summed]
        self._sum_3HW = self._sum_3HW + taken_F3HW.sum(0)
        self._num_summed += len(taken_F3HW)
        self._before_3HW = mean_3HW
        from_start = (mean_3HW - self._sum_3HW / self._num_summed).abs().mean().item()
        return from_start, None if before_3HW is None else (mean_3HW - before_3HW).abs().mean().item()


def weigh_trait(name: str, value: float) -> float:
    """Return a trait in the unit of its limit. What the eye sees of sharpness is its ratio, so that is in percent."""
    return 100 * math.log(max(value, 0.1)) if name == "sharpness" else value


def describe_fault(fault: Fault, moments: Sequence[Moment]) -> str:
    """Describe a fault that all these moments have."""
    if fault is Fault.JUMP:
        jump = max(moment.jump or 0 for moment in moments)
        return f"the picture jumps, by {jump:.1f} times the usual step"
    if fault is Fault.FREEZE:
        return "the picture stands still, but it moved before"
    deviations = find_largest([moment.deviations for moment in moments if moment.deviations]) or {}
    name = max(deviations, key=lambda name: abs(deviations[name]))
    more, less = TRAIT_WORDS[name]
    unit = "%" if name == "sharpness" else " of 255"
    by = abs(deviations[name]) * LIMITS[name]
    than = f"the picture is {more if deviations[name] > 0 else less} than in the first seconds"
    return f"{than}, by {by:.0f}{unit}, and {LIMITS[name]:.0f} are allowed"


def list_warnings(blocks: Iterable[BlockDrift]) -> list[str]:
    """List the warnings of blocks, only the first one where blocks in a row have the same fault."""
    warnings, before = [], None
    for block in blocks:
        if block.fault and block.fault is not before:
            warnings.append(block.warning)
        before = block.fault
    return warnings


def find_largest(rows: Sequence[Sequence[float]]) -> dict[str, float] | None:
    """Find the value of each trait that is farthest from 0; None without any."""
    return name_traits([max(column, key=abs) for column in zip(*rows, strict=True)]) if rows else None


def name_traits(values: Sequence[float]) -> dict[str, float]:
    return dict(zip(TRAITS, values, strict=True))


def shorten_values(values: Mapping[str, float | None]) -> dict[str, float | None]:
    return {name: None if value is None else round(value, 2) for name, value in values.items()}
