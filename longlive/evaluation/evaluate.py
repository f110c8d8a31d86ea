"""Measures any video from its pixels: consistency, drift, and discontinuity where a prompt changes.

This needs no label and no network. With a CLIP model it also measures how well the video shows its prompts.

Dimension key: F pixel frames, H rows, W columns, T traits, N numbers of a thumbnail, D width of CLIP's space.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
import torch
from av.container import InputContainer
from av.error import FFmpegError
from torch import Tensor

from ..config import RolloutConfig
from ..errors import EvaluationError, ScriptError
from ..files import check_regular
from ..session.boundary import Boundary
from ..session.timeline import Segment
from ..units import count_pixel_frames
from ..video.fragments import draw_frame, open_container
from .clip_score import ClipScorer
from .drift import BlockDrift, DriftMeter, SwitchMark, list_warnings
from .drift_log import tabulate_blocks
from .pictures import STEP_SIZE, TRAITS, make_thumbnails, measure_steps, shrink
from .report import Cell, Figure, Plot, PlotCurve, Report, Table

AROUND = 8  # steps on either side of a boundary to compare it with
MIN_STEP = 0.1  # of 255; with smaller ones a video stands still, and their ratio means nothing
FRAMES_PER_READ = 16


@dataclass(frozen=True, slots=True)
class VideoFeatures:
    """Numbers for each pixel frame of a video."""

    fps: float
    drift: tuple[BlockDrift, ...]  # of FRAMES_PER_READ each
    step_F: Tensor  # mean absolute difference from the frame before, 0..255; 0 for the first
    thumbnail_FN: Tensor  # mean 0 and length 1, so that a product is a correlation
    clip_D: dict[int, Tensor]  # by frame, one per second; empty without CLIP

    @property
    def num_frames(self) -> int:
        return len(self.step_F)

    @property
    def second(self) -> int:
        """A second, in pixel frames."""
        return max(1, round(self.fps))

    def correlate(self, frame: int, other: int) -> float:
        """Correlate two thumbnails, -1..1; returns 1 if neither has any contrast."""
        one_N, other_N = self.thumbnail_FN[frame], self.thumbnail_FN[other]
        return (one_N @ other_N).item() if one_N.any() or other_N.any() else 1.0


@dataclass(frozen=True, slots=True)
class PromptSpan:
    """The pixel frames under one prompt."""

    first: int
    end: int
    prompt: str = ""


def evaluate_video(path: Path, segments: Sequence[Segment] = (), scorer: ClipScorer | None = None) -> Report:
    """Measure a video. `segments`, if known, are those of its script, in blocks of the released size.

    Raises EvaluationError for a file that is not a video, and ScriptError if the segments have another length, or if
    there are none but CLIP needs prompts.
    """
    if scorer and not segments:
        raise ScriptError("CLIP compares pictures with prompts, but there are none; give the script of the video too")
    features = read_features(path, scorer, mark_segments(segments))
    spans = split_spans(segments, features.num_frames)
    tables = [
        tabulate_segments(features, spans, scorer),
        tabulate_drift(features),
        tabulate_blocks(features.drift, features.fps),
    ]
    return Report(path.name, tuple(tables), (plot_drift(features),))


def read_features(path: Path, scorer: ClipScorer | None = None, marks: Sequence[SwitchMark] = ()) -> VideoFeatures:
    """Read a video file once and compute its features. `marks` say where its prompt changes."""
    with open_video(path) as (fps, batches):
        second = max(1, round(fps))
        meter = DriftMeter(fps)
        meter.expect(marks)
        drift, steps, thumbnails, clips = [], [], [], {}
        before_13HW, start = None, 0
        for bytes_FHW3 in batches:
            drift.append(meter.add(bytes_FHW3))
            thumbnails.append(make_thumbnails(bytes_FHW3))
            small_F3HW = shrink(bytes_FHW3, STEP_SIZE)
            steps.append(measure_steps(small_F3HW, before_13HW))
            chosen = [i for i in range(len(bytes_FHW3)) if (start + i) % second == second // 2]
            if scorer and chosen:
                clips |= zip([start + i for i in chosen], scorer.embed_pictures(bytes_FHW3[chosen]), strict=True)
            before_13HW, start = small_F3HW[-1:], start + len(bytes_FHW3)
    if not start:
        raise EvaluationError(f"{path} has no pixel frames; give a video that plays")
    return VideoFeatures(fps, tuple(drift), torch.cat(steps), torch.cat(thumbnails), clips)


@contextmanager
def open_video(path: Path) -> Iterator[tuple[float, Iterator[Tensor]]]:
    """Open a video file: its rate, and its pixel frames [F, H, W, 3] as bytes, a few at a time.

    Raises EvaluationError for a file that cannot be read as a video.
    """
    try:
        check_regular(path)  # FFmpeg would wait for a pipe
        with open_container(path) as container:
            if not container.streams.video:
                raise EvaluationError(f"{path} has no video stream; give a video")
            yield float(container.streams.video[0].average_rate or 1), read_batches(container)
    except (FFmpegError, OSError) as error:
        reason = error.strerror or error
        raise EvaluationError(f"{path} cannot be read as a video: {reason}; give one that plays") from error


def read_batches(container: InputContainer) -> Iterator[Tensor]:
    pictures: list[np.ndarray] = []
    size = None
    for frame in container.decode(video=0):
        size = size or (frame.width, frame.height)
        if (frame.width, frame.height) != size:
            raise EvaluationError(f"the pictures change from {size} to {(frame.width, frame.height)}; give one size")
        pictures.append(draw_frame(frame))
        if len(pictures) == FRAMES_PER_READ:
            yield torch.from_numpy(np.stack(pictures))
            pictures = []
    if pictures:
        yield torch.from_numpy(np.stack(pictures))


def split_spans(segments: Sequence[Segment], frames: int) -> list[PromptSpan]:
    """Split a video into the pixel frames of each segment, or one span of all without segments.

    Raises ScriptError if the segments have another length than the video.
    """
    if not segments:
        return [PromptSpan(0, frames)]
    block = RolloutConfig().block
    ends = [count_pixel_frames(end) for end in accumulate((segment.blocks * block for segment in segments), initial=0)]
    if ends[-1] != frames:
        raise ScriptError(
            f"the script makes {ends[-1]} pixel frames, but the video has {frames}; "
            f"give the whole script that the video was made with, in blocks of {block} latents"
        )
    return [PromptSpan(*ends, segment.prompt) for segment, ends in zip(segments, pairwise(ends), strict=True)]


def mark_segments(segments: Sequence[Segment]) -> list[SwitchMark]:
    """List where the picture may change: where a prompt does, at each block of a blend, and at every cut."""
    block = RolloutConfig().block
    marks, first = [], 0
    for before, segment in pairwise(segments):
        first += before.blocks
        if segment.boundary is Boundary.CUT or segment.prompt != before.prompt:
            count = min(segment.blend.blocks if segment.blend else 1, segment.blocks)
            marks += [SwitchMark(count_pixel_frames((first + i) * block), segment.boundary) for i in range(count)]
    return marks


def tabulate_segments(features: VideoFeatures, spans: Sequence[PromptSpan], scorer: ClipScorer | None) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for number, span in enumerate(spans, start=1):
        clock = span.first / features.fps, span.end / features.fps
        scores = [score_prompt(features, span, scorer)] if scorer else []
        rows.append(
            (
                number,
                *clock,
                measure_consistency(features, span),
                measure_discontinuity(features, span.first),
                *scores,
                span.prompt,
            )
        )
    columns = (
        ("segment", "d"),
        ("from, s", ".2f"),
        ("to, s", ".2f"),
        ("consistency", ".3f"),
        ("discontinuity", ".2f"),
        *([("CLIP score", ".2f")] if scorer else []),
        ("prompt", ""),
    )
    note = (
        "Consistency: correlation of thumbnails a second apart. Discontinuity: the step into the segment's first pixel "
        f"frame, as a multiple of the usual step ({AROUND} on either side); values near 1 are invisible."
    )
    if scorer:
        note += " CLIP score: 100 times the cosine of prompt and picture, one picture a second."
    return Table("Segments", columns, tuple(rows), note)


def measure_consistency(features: VideoFeatures, span: PromptSpan) -> float | None:
    """Average the correlation of thumbnails a second apart; None for a shorter span."""
    return average(
        features.correlate(frame, frame - features.second) for frame in range(span.first + features.second, span.end)
    )


def measure_discontinuity(features: VideoFeatures, frame: int) -> float | None:
    """Divide the step into a pixel frame by the median of the steps around it; None for the first frame."""
    if not frame:
        return None
    around_F = torch.cat(
        [features.step_F[max(1, frame - AROUND) : frame], features.step_F[frame + 1 : frame + 1 + AROUND]]
    )
    return (features.step_F[frame] / around_F.median().clamp_min(MIN_STEP)).item()


def score_prompt(features: VideoFeatures, span: PromptSpan, scorer: ClipScorer) -> float | None:
    """Compute 100 times the mean cosine of prompt and pictures; None for a span without a picture."""
    prompt_D = scorer.embed_prompt(span.prompt)
    cosine = average(
        (features.clip_D[i] @ prompt_D).item() for i in range(span.first, span.end) if i in features.clip_D
    )
    return None if cosine is None else 100 * cosine


def tabulate_drift(features: VideoFeatures) -> Table:
    """Tabulate how far each trait moves, and what the drift meter finds."""
    first, last = features.drift[0], features.drift[-1]
    judged = [block.deviations for block in features.drift if block.deviations]
    rows = tuple(
        (
            name,
            first.traits[name],
            last.traits[name],
            last.traits[name] - first.traits[name],
            max((deviations[name] for deviations in judged), key=abs, default=None),
        )
        for name in TRAITS
    )
    columns = (("of 255", ""), ("at first", ".1f"), ("at last", ".1f"), ("drift", "+.1f"), ("farthest", "+.2f"))
    correlation = f"The thumbnails of the first and the last pixel frame correlate by {features.correlate(0, -1):.3f}."
    warnings = list_warnings(features.drift) or ["Neither drift nor freeze nor jump is found."]
    note = (
        f"At first and at last: the mean of up to {FRAMES_PER_READ} pixel frames. Farthest: outside of the range of "
        f"the first seconds, as a multiple of its limit; beyond 1 it is a fault. Where the prompt changes, "
        f"only a script says. {correlation}"
    )
    return Table("Drift", columns, rows, "\n".join([note, "", *(f"- {warning}" for warning in warnings)]))


def plot_drift(features: VideoFeatures) -> Figure:
    """Plot the traits, their deviations from the range of the first seconds, motion and distances."""
    times = [block.first_frame / features.fps for block in features.drift]

    def plot(name: str, values: Iterable[float | None]) -> PlotCurve:
        points = [(time, value) for time, value in zip(times, values, strict=True) if value is not None]
        return (
            PlotCurve(name, *(tuple(column) for column in zip(*points, strict=True)))
            if points
            else PlotCurve(name, (), ())
        )

    traits = [plot(name, [block.traits[name] for block in features.drift]) for name in TRAITS]
    deviations = [
        plot(name, [block.deviations[name] if block.deviations else None for block in features.drift])
        for name in TRAITS
    ]
    steps = [
        plot("motion", [block.motion for block in features.drift]),
        plot("from the first second", [block.from_start for block in features.drift]),
        plot("from before", [block.from_before for block in features.drift]),
    ]
    return Figure(
        "drift",
        (
            Plot("of 255", "seconds", tuple(traits)),
            Plot("outside of the first seconds, in limits", "seconds", tuple(deviations)),
            Plot("of 255", "seconds", tuple(steps)),
        ),
    )


def average(values: Iterable[float]) -> float | None:
    """Average numbers; None if there are none."""
    listed = list(values)
    return sum(listed) / len(listed) if listed else None
