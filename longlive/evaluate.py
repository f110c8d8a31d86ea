"""What can be said of any video from its pixels: how it hangs together, drifts, and breaks where a prompt changes.

That needs no label and no network. With a CLIP model it is also said how well the prompts are shown; and of a video of
the miniature's world, exactly which of their words.

Dimension key: F pixel frames, H rows, W columns, T traits, N numbers of a thumbnail, D width of CLIP's space.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

import av
import numpy as np
import torch
import torch.nn.functional as nnf
from av.container import InputContainer
from av.error import FFmpegError
from torch import Tensor

from .clip import Clip
from .config import RolloutConfig, pixel_frames
from .errors import EvaluationError, ScriptError
from .files import check_regular
from .miniature import grammar
from .miniature.measure import jump, observed, right
from .miniature.world import SIZE
from .report import Cell, Curve, Figure, Plot, Report, Table
from .timeline import Segment

TRAITS = ("brightness", "contrast", "saturation", "sharpness")  # that stay as they are where nothing drifts
LUMA = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601)
THUMBNAIL = 16  # rows and columns: what is where, without its details
AROUND = 8  # steps on either side of a boundary that it is compared with
LEAST_STEP = 0.1  # of 255: below it a video stands still, and no step is a multiple of none
PASS = 16  # pixel frames read together


@dataclass(frozen=True, slots=True)
class Look:
    """What a video's pixel frames look like."""

    fps: float
    traits_FT: Tensor  # 0..255
    step_F: Tensor  # mean absolute difference from the frame before, 0..255; 0 for the first
    thumbnail_FN: Tensor  # without their mean and of length 1, so that a product is a correlation
    clip_D: dict[int, Tensor]  # by frame, one a second; empty without CLIP
    world_FCHW: Tensor | None  # the pixels, -1..1, of a video that may be of the miniature's world

    @property
    def frames(self) -> int:
        return len(self.step_F)

    @property
    def second(self) -> int:
        """Pixel frames."""
        return max(1, round(self.fps))

    def correlation(self, frame: int, other: int) -> float:
        """Of two thumbnails, -1..1; two without any contrast are alike."""
        one_N, other_N = self.thumbnail_FN[frame], self.thumbnail_FN[other]
        return (one_N @ other_N).item() if one_N.any() or other_N.any() else 1.0


@dataclass(frozen=True, slots=True)
class Span:
    """The pixel frames under one prompt."""

    first: int
    end: int
    prompt: str = ""


def evaluate(path: Path, segments: Sequence[Segment] = (), clip: Clip | None = None) -> Report:
    """Measure a video; `segments`, where they are known, are what it was made along, in blocks of the released size.

    Raises EvaluationError for a file that is no video, and ScriptError for segments of another length, or none for
    CLIP to compare with.
    """
    if clip and not segments:
        raise ScriptError("CLIP compares pictures with prompts, but there are none; give the script of the video too")
    is_world = bool(segments) and not any(grammar.complaints(segment.prompt) for segment in segments)
    look = look_at(path, clip, is_world=is_world)
    spans = spans_of(segments, look.frames)
    tables = [segments_table(look, spans, clip), drift_table(look)]
    if look.world_FCHW is not None:
        tables.append(words_table(look.world_FCHW, spans, look.second))
    return Report(path.name, tuple(tables), (drift_figure(look),))


def look_at(path: Path, clip: Clip | None = None, *, is_world: bool = False) -> Look:
    """Look through a video file once."""
    with opened(path) as (fps, passes):
        second = max(1, round(fps))
        traits, steps, thumbnails, clips, world = [], [], [], {}, []
        before_1HW3, start = None, 0
        for bytes_FHW3 in passes:
            traits.append(traits_of(bytes_FHW3))
            thumbnails.append(thumbnails_of(bytes_FHW3))
            joined = torch.cat([bytes_FHW3[:1] if before_1HW3 is None else before_1HW3, bytes_FHW3]).float()
            steps.append(joined.diff(dim=0).abs().mean((1, 2, 3)))
            chosen = [i for i in range(len(bytes_FHW3)) if (start + i) % second == second // 2]
            if clip and chosen:
                clips |= zip([start + i for i in chosen], clip.pictures(bytes_FHW3[chosen]), strict=True)
            if is_world and is_of_world(*bytes_FHW3.shape[1:3]):
                world.append(shrunk(bytes_FHW3, SIZE) / 127.5 - 1)
            before_1HW3, start = bytes_FHW3[-1:], start + len(bytes_FHW3)
    if not start:
        raise EvaluationError(f"{path} holds no pixel frame; give a video that plays")
    pixels_FCHW = torch.cat(world) if world else None
    return Look(fps, torch.cat(traits), torch.cat(steps), torch.cat(thumbnails), clips, pixels_FCHW)


@contextmanager
def opened(path: Path) -> Iterator[tuple[float, Iterator[Tensor]]]:
    """The rate of a video file and its pixel frames [F, H, W, 3], bytes, a few at a time. Raises EvaluationError."""
    try:
        check_regular(path)  # FFmpeg would wait for a pipe, and takes a name such as a:b for an address
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise EvaluationError(f"{path} holds no pictures; give a video")
            yield float(container.streams.video[0].average_rate or 1), passes_of(container)
    except (FFmpegError, OSError) as error:
        reason = error.strerror or error
        raise EvaluationError(f"{path} cannot be read as a video: {reason}; give one that plays") from error


def passes_of(container: InputContainer) -> Iterator[Tensor]:
    waiting: list[np.ndarray] = []
    size = None
    for frame in container.decode(video=0):
        size = size or (frame.width, frame.height)
        if (frame.width, frame.height) != size:
            raise EvaluationError(f"the pictures change from {size} to {(frame.width, frame.height)}; give one size")
        waiting.append(frame.to_ndarray(format="rgb24"))
        if len(waiting) == PASS:
            yield torch.from_numpy(np.stack(waiting))
            waiting = []
    if waiting:
        yield torch.from_numpy(np.stack(waiting))


def traits_of(bytes_FHW3: Tensor) -> Tensor:
    """Of each frame [F, T]: mean and deviation of its light, spread of its colours, step from pixel to pixel."""
    rgb_FHW3 = bytes_FHW3.float()
    luma_FHW = rgb_FHW3 @ torch.tensor(LUMA)
    saturation_FHW = rgb_FHW3.amax(-1) - rgb_FHW3.amin(-1)
    down_F, across_F = (luma_FHW.diff(dim=axis).abs().mean((1, 2)) for axis in (1, 2))
    light_FN = luma_FHW.flatten(1)
    return torch.stack([light_FN.mean(1), light_FN.std(1), saturation_FHW.mean((1, 2)), (down_F + across_F) / 2], dim=1)


def thumbnails_of(bytes_FHW3: Tensor) -> Tensor:
    small_FN = shrunk(bytes_FHW3, THUMBNAIL).flatten(1)
    return nnf.normalize(small_FN - small_FN.mean(1, keepdim=True), dim=1)


def shrunk(bytes_FHW3: Tensor, size: int) -> Tensor:
    """Pictures [F, 3, size, size], 0..255, each pixel the mean of those it stands for."""
    return nnf.interpolate(bytes_FHW3.permute(0, 3, 1, 2).float(), (size, size), mode="area")


def is_of_world(rows: int, columns: int) -> bool:
    """Whether pictures are as large as the miniature's world, or that enlarged."""
    return rows == columns and rows % SIZE == 0


def spans_of(segments: Sequence[Segment], frames: int) -> list[Span]:
    """The pixel frames of each segment, or one span of all. Raises ScriptError for a video of another length."""
    if not segments:
        return [Span(0, frames)]
    block = RolloutConfig().block
    ends = [pixel_frames(end) for end in accumulate((segment.blocks * block for segment in segments), initial=0)]
    if ends[-1] != frames:
        raise ScriptError(
            f"the script makes {ends[-1]} pixel frames, but the video has {frames}; "
            f"give the whole script that the video was made along, in blocks of {block} latents"
        )
    return [Span(*ends, segment.prompt) for segment, ends in zip(segments, pairwise(ends), strict=True)]


def segments_table(look: Look, spans: Sequence[Span], clip: Clip | None) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for number, span in enumerate(spans, start=1):
        clock = span.first / look.fps, span.end / look.fps
        scores = [clip_score(look, span, clip)] if clip else []
        rows.append((number, *clock, consistency(look, span), discontinuity(look, span.first), *scores, span.prompt))
    columns = (
        ("segment", "d"),
        ("from, s", ".2f"),
        ("to, s", ".2f"),
        ("consistency", ".3f"),
        ("discontinuity", ".2f"),
        *([("CLIP score", ".2f")] if clip else []),
        ("prompt", ""),
    )
    note = (
        "Consistency: correlation of thumbnails a second apart. Discontinuity: the step into the segment's first pixel "
        f"frame, as a multiple of the usual step ({AROUND} on either side); near 1 nobody sees it."
    )
    if clip:
        note += " CLIP score: 100 times the cosine of prompt and picture, one picture a second."
    return Table("Segments", columns, tuple(rows), note)


def consistency(look: Look, span: Span) -> float | None:
    """The mean correlation of thumbnails a second apart; None for a span that is shorter."""
    return mean(look.correlation(frame, frame - look.second) for frame in range(span.first + look.second, span.end))


def discontinuity(look: Look, frame: int) -> float | None:
    """The step into a pixel frame as a multiple of the median of those around it; None for the first of all."""
    if not frame:
        return None
    around_F = torch.cat([look.step_F[max(1, frame - AROUND) : frame], look.step_F[frame + 1 : frame + 1 + AROUND]])
    return (look.step_F[frame] / around_F.median().clamp_min(LEAST_STEP)).item()


def clip_score(look: Look, span: Span, clip: Clip) -> float | None:
    """100 times the mean cosine of prompt and pictures; None for a span without a picture."""
    prompt_D = clip.prompt(span.prompt)
    cosine = mean((look.clip_D[i] @ prompt_D).item() for i in range(span.first, span.end) if i in look.clip_D)
    return None if cosine is None else 100 * cosine


def drift_table(look: Look) -> Table:
    firsts, lasts = (part.mean(0).tolist() for part in (look.traits_FT[: look.second], look.traits_FT[-look.second :]))
    rows = tuple((name, one, last, last - one) for name, one, last in zip(TRAITS, firsts, lasts, strict=True))
    columns = (("of 255", ""), ("first second", ".1f"), ("last second", ".1f"), ("drift", "+.1f"))
    note = f"The thumbnails of the first and the last pixel frame correlate by {look.correlation(0, -1):.3f}."
    return Table("Drift", columns, rows, note)


def drift_figure(look: Look) -> Figure:
    """Traits by the second, and how much is left of the first frame."""
    parts = look.traits_FT.split(look.second)
    seconds = tuple(map(float, range(len(parts))))
    curves = tuple(
        Curve(name, seconds, tuple(part[:, i].mean().item() for part in parts)) for i, name in enumerate(TRAITS)
    )
    left = tuple(look.correlation(0, frame) for frame in range(0, look.frames, look.second))
    first = Plot("correlation with the first frame", "seconds", (Curve("", seconds, left),))
    return Figure("drift", (Plot("of 255", "seconds", curves), first))


def words_table(pixels_FCHW: Tensor, spans: Sequence[Span], second: int) -> Table:
    """What the miniature's world shows of its prompts, exactly."""
    seen = observed(pixels_FCHW)
    is_right = right(seen, [(span.first, grammar.parse(span.prompt)) for span in spans])
    rows: list[tuple[Cell, ...]] = []
    for number, span in enumerate(spans, start=1):
        counted = slice(span.first + second if span.first else 0, span.end)
        shares = [mean(is_right_F[counted].tolist()) for is_right_F in is_right.values()]
        jumped = jump(seen, span.first) if span.first else None
        rows.append((number, *shares, jumped, mean(seen.area_F[counted].tolist())))
    columns = (("segment", "d"), *((name, ".1%") for name in is_right), ("jump, px", ".1f"), ("area, px", ".0f"))
    note = "Share of pixel frames that show what their prompt says, from a second after a switch on."
    return Table("Words that are shown", columns, tuple(rows), note)


def mean(values: Iterable[float]) -> float | None:
    """None for nothing."""
    listed = list(values)
    return sum(listed) / len(listed) if listed else None
