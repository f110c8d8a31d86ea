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
import torch.nn.functional as nnf
from av.container import InputContainer
from av.error import FFmpegError
from torch import Tensor

from ..config import RolloutConfig
from ..errors import EvaluationError, ScriptError
from ..files import check_regular
from ..session.timeline import Segment
from ..units import count_pixel_frames
from ..video.fragments import open_container
from .clip_score import ClipScorer
from .report import Cell, Figure, Plot, PlotCurve, Report, Table

TRAITS = ("brightness", "contrast", "saturation", "sharpness")  # constant in a video that does not drift
LUMA = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601)
THUMBNAIL = 16  # rows and columns
AROUND = 8  # steps on either side of a boundary to compare it with
MIN_STEP = 0.1  # of 255; with smaller ones a video stands still, and their ratio means nothing
FRAMES_PER_READ = 16


@dataclass(frozen=True, slots=True)
class VideoFeatures:
    """Numbers for each pixel frame of a video."""

    fps: float
    traits_FT: Tensor  # 0..255
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
    features = read_features(path, scorer)
    spans = split_spans(segments, features.num_frames)
    tables = [tabulate_segments(features, spans, scorer), tabulate_drift(features)]
    return Report(path.name, tuple(tables), (plot_drift(features),))


def read_features(path: Path, scorer: ClipScorer | None = None) -> VideoFeatures:
    """Read a video file once and compute its features."""
    with open_video(path) as (fps, batches):
        second = max(1, round(fps))
        traits, steps, thumbnails, clips = [], [], [], {}
        before_1HW3, start = None, 0
        for bytes_FHW3 in batches:
            traits.append(measure_traits(bytes_FHW3))
            thumbnails.append(make_thumbnails(bytes_FHW3))
            joined = torch.cat([bytes_FHW3[:1] if before_1HW3 is None else before_1HW3, bytes_FHW3]).float()
            steps.append(joined.diff(dim=0).abs().mean((1, 2, 3)))
            chosen = [i for i in range(len(bytes_FHW3)) if (start + i) % second == second // 2]
            if scorer and chosen:
                clips |= zip([start + i for i in chosen], scorer.embed_pictures(bytes_FHW3[chosen]), strict=True)
            before_1HW3, start = bytes_FHW3[-1:], start + len(bytes_FHW3)
    if not start:
        raise EvaluationError(f"{path} has no pixel frames; give a video that plays")
    return VideoFeatures(fps, torch.cat(traits), torch.cat(steps), torch.cat(thumbnails), clips)


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
        pictures.append(frame.to_ndarray(format="rgb24"))
        if len(pictures) == FRAMES_PER_READ:
            yield torch.from_numpy(np.stack(pictures))
            pictures = []
    if pictures:
        yield torch.from_numpy(np.stack(pictures))


def measure_traits(bytes_FHW3: Tensor) -> Tensor:
    """Measure the TRAITS of each frame [F, T].

    They are the mean and the standard deviation of luma, the range of red, green and blue in a pixel, and the step of
    luma between neighbouring pixels.
    """
    rgb_FHW3 = bytes_FHW3.float()
    luma_FHW = rgb_FHW3 @ torch.tensor(LUMA)
    saturation_FHW = rgb_FHW3.amax(-1) - rgb_FHW3.amin(-1)
    down_F, across_F = (luma_FHW.diff(dim=axis).abs().mean((1, 2)) for axis in (1, 2))
    light_FN = luma_FHW.flatten(1)
    return torch.stack([light_FN.mean(1), light_FN.std(1), saturation_FHW.mean((1, 2)), (down_F + across_F) / 2], dim=1)


def make_thumbnails(bytes_FHW3: Tensor) -> Tensor:
    small_FN = shrink(bytes_FHW3, THUMBNAIL).flatten(1)
    return nnf.normalize(small_FN - small_FN.mean(1, keepdim=True), dim=1)


def shrink(bytes_FHW3: Tensor, size: int) -> Tensor:
    """Shrink pictures to [F, 3, size, size], 0..255; each pixel is the mean of those it replaces."""
    return nnf.interpolate(bytes_FHW3.permute(0, 3, 1, 2).float(), (size, size), mode="area")


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
    firsts, lasts = (
        part.mean(0).tolist()
        for part in (features.traits_FT[: features.second], features.traits_FT[-features.second :])
    )
    rows = tuple((name, one, last, last - one) for name, one, last in zip(TRAITS, firsts, lasts, strict=True))
    columns = (("of 255", ""), ("first second", ".1f"), ("last second", ".1f"), ("drift", "+.1f"))
    note = f"The thumbnails of the first and the last pixel frame correlate by {features.correlate(0, -1):.3f}."
    return Table("Drift", columns, rows, note)


def plot_drift(features: VideoFeatures) -> Figure:
    """Plot the traits of each second, and the correlation of each second with the first frame."""
    parts = features.traits_FT.split(features.second)
    seconds = tuple(map(float, range(len(parts))))
    curves = tuple(
        PlotCurve(name, seconds, tuple(part[:, i].mean().item() for part in parts)) for i, name in enumerate(TRAITS)
    )
    left = tuple(features.correlate(0, frame) for frame in range(0, features.num_frames, features.second))
    first = Plot("correlation with the first frame", "seconds", (PlotCurve("", seconds, left),))
    return Figure("drift", (Plot("of 255", "seconds", curves), first))


def average(values: Iterable[float]) -> float | None:
    """Average numbers; None if there are none."""
    listed = list(values)
    return sum(listed) / len(listed) if listed else None
