"""Which words of its prompts a video file shows, if it shows the miniature's world."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ...evaluation.clip_score import ClipScorer
from ...evaluation.evaluate import average, evaluate_video, open_video, split_spans
from ...evaluation.pictures import shrink
from ...evaluation.report import Cell, Report, Table
from ...session.timeline import Segment
from .. import grammar
from ..world import SIZE
from .measure import find_right_frames, measure_jump, observe


def evaluate_world_video(path: Path, segments: Sequence[Segment] = (), scorer: ClipScorer | None = None) -> Report:
    """Measure a video; add a table of words if it shows the miniature's world. Raises what `evaluate_video` raises."""
    report = evaluate_video(path, segments, scorer)
    if not segments or any(grammar.find_problems(segment.prompt) for segment in segments):
        return report
    fps, pixels_FCHW = read_world(path)
    if pixels_FCHW is None:
        return report
    table = tabulate_words(pixels_FCHW, segments, max(1, round(fps)))
    return replace(report, tables=(*report.tables, table))


def read_world(path: Path) -> tuple[float, Tensor | None]:
    """Read a video's rate and its pixels [F 3 H W], -1..1, in the world's size; None if they are not square."""
    with open_video(path) as (fps, batches):
        pixels = []
        for bytes_FHW3 in batches:
            rows, columns = bytes_FHW3.shape[1:3]
            if rows != columns or rows % SIZE:
                return fps, None
            pixels.append(shrink(bytes_FHW3, SIZE) / 127.5 - 1)
    return fps, torch.cat(pixels)


def tabulate_words(pixels_FCHW: Tensor, segments: Sequence[Segment], second: int) -> Table:
    """Tabulate which words of its prompts each segment shows; `second` is a second in pixel frames."""
    spans = split_spans(segments, len(pixels_FCHW))
    observation = observe(pixels_FCHW)
    is_right = find_right_frames(observation, [(span.first, grammar.parse_prompt(span.prompt)) for span in spans])
    rows: list[tuple[Cell, ...]] = []
    for number, span in enumerate(spans, start=1):
        counted = slice(span.first + second if span.first else 0, span.end)
        shares = [average(is_right_F[counted].tolist()) for is_right_F in is_right.values()]
        jump = measure_jump(observation, span.first) if span.first else None
        rows.append((number, *shares, jump, average(observation.area_F[counted].tolist())))
    columns = (("segment", "d"), *((name, ".1%") for name in is_right), ("jump, px", ".1f"), ("area, px", ".0f"))
    note = "Share of pixel frames that show what their prompt says, from a second after a switch on."
    return Table("Words that are shown", columns, tuple(rows), note)
