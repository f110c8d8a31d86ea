"""A video as text: prompts with durations, and how the memory changes where each begins (LongLive §3.1, Alg. 2).

Knows neither tensors nor nodes; `web/timeline/model.js` reads the same script, one segment a line:

    # recache with the sink kept is what a segment does when no word is given
    8s | A paper boat drifts down a gutter,
        close to the water; an indented line continues the prompt above.
    7.5 s | The rain stops.
    # a new sink; the memory kept under a new text; the memory discarded
    10b renew | The gutter is a river.
    30f keep | The boat turns.
    8s cut | A harbour at night.

Seconds snap to whole blocks, each segment on its own; blocks and (latent) frames must fit.
"""

import difflib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from .config import FPS, MAX_SECONDS, blocks_to_seconds, pixel_frames, seconds_to_blocks
from .errors import ConfigError, TimelineError


class Boundary(StrEnum):
    """How the memory changes where a segment begins."""

    RECACHE = "recache"  # recompute the window under the new prompt; the sink stays
    RENEW = "renew"  # recompute the window under the new prompt; it gives a new sink
    KEEP = "keep"  # leave the memory, change only the text
    DISCARD = "discard"  # empty the memory, the sink included


WORDS = {Boundary.RECACHE: "", Boundary.RENEW: "renew", Boundary.KEEP: "keep", Boundary.DISCARD: "cut"}
BOUNDARIES = {word: boundary for boundary, word in WORDS.items()} | {"recache": Boundary.RECACHE}  # what "" means
UNITS = {unit: name[0] for name in ("seconds", "blocks", "frames") for unit in (name[0], name[:-1], name)}

SPACE = " \t\u00a0\u3000"  # with the no-break and the ideographic space of pasted text
LOOKALIKES = "｜│¦"  # bars that are not the plain one
NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)")
WORD = re.compile(rf"[^{SPACE}]+")
HEAD = re.compile(
    rf"{NUMBER.pattern}[{SPACE}]*(?:{'|'.join(UNITS)})(?:[{SPACE}]+[a-z]+)?[{SPACE}]*[|{LOOKALIKES}]", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Segment:
    """The blocks under one prompt."""

    prompt: str
    blocks: int
    boundary: Boundary = Boundary.RECACHE
    line: int = 0  # of the script, from 1
    asked: str = ""  # the duration as written


def parse(text: str, block: int = 3) -> tuple[Segment, ...]:
    """Read a script for blocks of `block` frames. Raises TimelineError with line and column, both from 1."""
    segments: list[Segment] = []
    columns: list[int] = []  # where each prompt begins
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text.removeprefix("\ufeff")), start=1):
        content = line.strip(SPACE)
        if not content or content.startswith("#"):
            continue
        if line[0] not in SPACE:
            segment, column = _parse_line(line, number, block)
            segments.append(segment)
            columns.append(column)
        elif segments and not HEAD.match(content):
            segments[-1] = replace(segments[-1], prompt=f"{segments[-1].prompt} {content}".lstrip(SPACE))
        else:
            problem = "an indented line continues the prompt above; to begin a segment, start at the margin"
            raise TimelineError(problem, line=number, column=line.index(content) + 1)
    if not segments:
        raise TimelineError("the script is empty; write for example: 8s | a paper boat in the rain", line=1, column=1)
    for segment, column in zip(segments, columns, strict=True):
        if not segment.prompt:
            problem = "the prompt is empty; say behind the bar what is to be seen"
            raise TimelineError(problem, line=segment.line, column=column)
    return tuple(segments)


def report(segments: Sequence[Segment], block: int = 3, before: int = 0) -> str:
    """What a script comes to, as a plain table; `before` counts the frames the video already has."""
    rows = [["segment", "from", "to", "blocks", "frames", "pixel frames", "boundary", "duration"]]
    notes = []
    start = before
    for index, segment in enumerate(segments, start=1):
        end = start + segment.blocks * block
        clock = [f"{blocks_to_seconds(frame, 1):.2f}" for frame in (start, end)]
        counts = [str(n) for n in (segment.blocks, end - start, pixel_frames(end) - pixel_frames(start))]
        duration = f"{segment.asked} asked, {segment.blocks} blocks = {blocks_to_seconds(segment.blocks, block):g} s"
        rows.append([str(index), *clock, *counts, str(segment.boundary) if start else "start", duration])
        if start == 0 and segment.boundary is not Boundary.RECACHE:
            notes.append(f"note: '{WORDS[segment.boundary]}' on segment {index} has no effect: the video begins there")
        start = end
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = [
        [*map(str.rjust, row[:6], widths[:6]), *map(str.ljust, row[6:], widths[6:])]  # numbers right, words left
        for row in rows
    ]
    lengths = f"{start} frames, {pixel_frames(start)} pixel frames, {pixel_frames(start) / FPS:.2f} s"
    total = f"total: {sum(segment.blocks for segment in segments)} blocks; the video is {lengths} long"
    return "\n".join([*("  ".join(row).rstrip() for row in aligned), total, *notes]) + "\n"


def _parse_line(line: str, number: int, block: int) -> tuple[Segment, int]:
    """A segment from the line it begins on, and the column of its prompt."""

    def error(problem: str, index: int) -> TimelineError:
        return TimelineError(problem, line=number, column=index + 1)

    head, bar, prompt = line.partition("|")
    for index, char in enumerate(head):
        if char in LOOKALIKES:
            raise error(f"'{char}' only looks like a bar; use the plain |", index)

    value = NUMBER.match(head)
    if value is None:
        problem = "a segment begins with its duration: 8s (seconds), 10b (blocks) or 30f (frames), as in 8s | a prompt"
        raise error(problem if bar else f"{problem}; to continue the prompt above, indent the line", 0)
    words = list(WORD.finditer(head, value.end()))
    unit = words[0][0].lower() if words else ""
    if unit in BOUNDARIES:  # which has the empty word too
        choices = f"{value[0]}s (seconds), {value[0]}b (blocks) or {value[0]}f (frames)"
        raise error(f"the duration has no unit; write {choices}", value.end())
    if unit not in UNITS:
        raise error(f"unknown unit '{words[0][0]}'; use s (seconds), b (blocks) or f (frames)", words[0].start())

    word = words[1][0].lower() if len(words) > 1 else ""
    if not bar:
        behind = words[1] if word and word in BOUNDARIES else words[0]
        raise error("a bar is missing between duration and prompt, as in 8s | a prompt", behind.end())
    if word not in BOUNDARIES:
        near = difflib.get_close_matches(word, BOUNDARIES, n=1)
        cure = f"did you mean {near[0]}?" if near else "use renew, keep or cut, or no word to recache"
        raise error(f"unknown boundary '{words[1][0]}'; {cure}", words[1].start())
    if len(words) > 2:
        raise error(f"'{words[2][0]}' is one word too many before the bar", words[2].start())

    try:
        blocks = _blocks(float(value[0]), UNITS[unit], block)
    except ConfigError as problem:
        raise error(str(problem), 0) from None
    asked = head[: words[0].end()]
    return Segment(prompt.strip(SPACE), blocks, BOUNDARIES[word], number, asked), len(head) + 2


def _blocks(value: float, unit: str, block: int) -> int:
    if unit == "s":
        return seconds_to_blocks(value, block)
    step = block if unit == "f" else 1
    if value / step * blocks_to_seconds(1, block) > MAX_SECONDS:
        raise ConfigError(f"the duration is {value:g}{unit}; one segment may last {MAX_SECONDS} s (a day) at most")
    if value <= 0 or value % step:
        low = math.floor(max(0, value) / step) * step
        fitting = " or ".join(f"{count}{unit}" for count in (low, low + step) if count)
        goal = f"blocks of {block} frames" if unit == "f" else "whole blocks"
        raise ConfigError(f"a segment of {value:g}{unit} does not fill {goal}; use {fitting}")
    return int(value) // step
