"""A video as text: prompts with durations, and what happens to the KV cache at each switch (LongLive §3.1, Alg. 2).

Knows neither tensors nor nodes; `web/timeline/model.js` reads the same script, one segment per line:

    # without a word: recache, keep the sink
    8s | A paper boat drifts down a gutter,
        close to the water; an indented line continues the prompt above.
    7.5 s | The rain stops.
    # a new sink; the KV cache kept under a new text; the KV cache emptied
    10b renew | The gutter is a river.
    30f keep | The boat turns.
    8s cut | A harbour at night.

Seconds snap to whole blocks, in each segment separately; blocks and (latent) frames must fit.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..errors import TimelineError
from ..units import FPS, MAX_SECONDS, convert_blocks_to_seconds, convert_seconds_to_blocks, count_pixel_frames
from .boundary import Boundary

MAX_CHARACTERS = 200_000  # of a script; hours of video have fewer


BOUNDARIES = {"": Boundary.RECACHE, **{boundary.word: boundary for boundary in Boundary}}
UNITS = {unit: name[0] for name in ("seconds", "blocks", "frames") for unit in (name[0], name[:-1], name)}

SPACES = " \t\u00a0\u3000"  # with the no-break and the ideographic space of pasted text
LOOKALIKES = "｜│¦"  # bars that are not the plain one
SHOWN_CHARACTERS = 40  # of a word that a message repeats
# Each of these matches a text in one way only. Otherwise the time for a long text would grow with its square.
NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)")
WORD = re.compile(rf"[^{SPACES}]+")
HEAD = re.compile(
    rf"{NUMBER.pattern}[{SPACES}]*(?:{'|'.join(UNITS)})(?:[{SPACES}]+[a-z]+)?[{SPACES}]*[|{LOOKALIKES}]",
    re.IGNORECASE | re.ASCII,  # as in JavaScript
)


@dataclass(frozen=True, slots=True)
class Segment:
    """The blocks under one prompt."""

    prompt: str
    blocks: int
    boundary: Boundary = Boundary.RECACHE
    line: int = 0  # of the script, from 1
    asked: str = ""  # the duration as written


def parse_timeline(text: str, block: int = 3) -> tuple[Segment, ...]:
    """Read a script for blocks of `block` frames. Raises TimelineError with line and column, both from 1."""
    if len(text) > MAX_CHARACTERS:
        problem = f"the script has {len(text)} characters; {MAX_CHARACTERS} at most are read, so use several timelines"
        raise TimelineError(problem, line=1, column=1)
    segments: list[Segment] = []
    columns: list[int] = []  # where each prompt begins
    prompts: list[list[str]] = []  # the lines of each
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text.removeprefix("\ufeff")), start=1):
        content = line.strip(SPACES)
        if not content or content.startswith("#"):
            continue
        if line[0] not in SPACES:
            segment, column = _parse_segment(line, number, block)
            segments.append(segment)
            columns.append(column)
            prompts.append([segment.prompt])
        elif segments and not HEAD.match(content):
            prompts[-1].append(content)
        else:
            problem = "an indented line continues the prompt above; to begin a segment, start at the margin"
            raise TimelineError(problem, line=number, column=line.index(content) + 1)
    if not segments:
        raise TimelineError("the script is empty; write for example: 8s | a paper boat in the rain", line=1, column=1)
    for segment, column, lines in zip(segments, columns, prompts, strict=True):
        if not any(lines):
            problem = "the prompt is empty; write it after the |"
            raise TimelineError(problem, line=segment.line, column=column)
    return tuple(
        replace(segment, prompt=" ".join(filter(None, lines))) for segment, lines in zip(segments, prompts, strict=True)
    )


def report_timeline(segments: Sequence[Segment], block: int = 3, before: int = 0) -> str:
    """Describe the segments as a plain table. `before` counts the frames that the video already has."""
    rows = [["segment", "from", "to", "blocks", "frames", "pixel frames", "boundary", "duration"]]
    notes = []
    start = before
    for index, segment in enumerate(segments, start=1):
        end = start + segment.blocks * block
        clock = [f"{convert_blocks_to_seconds(frame, 1):.2f}" for frame in (start, end)]
        counts = [str(n) for n in (segment.blocks, end - start, count_pixel_frames(end) - count_pixel_frames(start))]
        length = f"{spell_blocks(segment.blocks)} = {convert_blocks_to_seconds(segment.blocks, block):g} s"
        words = [segment.boundary.word if start else "start", f"{segment.asked} asked, {length}"]
        rows.append([str(index), *clock, *counts, *words])
        if start == 0 and segment.boundary is not Boundary.RECACHE:
            notes.append(f"note: '{segment.boundary.word}' on segment {index} has no effect: the video begins there")
        start = end
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = [
        [*map(str.rjust, row[:6], widths[:6]), *map(str.ljust, row[6:], widths[6:])]  # numbers right, words left
        for row in rows
    ]
    lengths = f"{start} frames, {count_pixel_frames(start)} pixel frames, {count_pixel_frames(start) / FPS:.2f} s"
    total = f"total: {spell_blocks(sum(segment.blocks for segment in segments))}; the video is {lengths} long"
    return "\n".join([*("  ".join(row).rstrip() for row in aligned), total, *notes]) + "\n"


def spell_blocks(number: int) -> str:
    """Write a number of blocks as words: 1 block, 2 blocks."""
    return f"{number} block" if number == 1 else f"{number} blocks"


def _parse_segment(line: str, number: int, block: int) -> tuple[Segment, int]:
    """Read the line that a segment begins on: the segment, and the column of its prompt."""

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
    written = _shorten(value[0])
    words = list(WORD.finditer(head, value.end()))
    unit = _lower_ascii(words[0][0]) if words else ""
    if unit in BOUNDARIES:  # or the empty word, which is one of them
        choices = f"{written}s (seconds), {written}b (blocks) or {written}f (frames)"
        raise error(f"the duration has no unit; write {choices}", value.end())
    if unit not in UNITS:
        raise error(
            f"unknown unit '{_shorten(words[0][0])}'; use s (seconds), b (blocks) or f (frames)", words[0].start()
        )

    word = _lower_ascii(words[1][0]) if len(words) > 1 else ""
    if not bar:
        behind = words[1] if word and word in BOUNDARIES else words[0]
        raise error("a bar is missing between duration and prompt, as in 8s | a prompt", behind.end())
    if word not in BOUNDARIES:
        near = _find_nearest(word)
        cure = f"did you mean {near}?" if near else "use renew, keep or cut, or no word to recache"
        raise error(f"unknown boundary '{_shorten(words[1][0])}'; {cure}", words[1].start())
    if len(words) > 2:
        raise error(f"'{_shorten(words[2][0])}' is one word too many before the bar", words[2].start())

    blocks = _read_duration(value[0], UNITS[unit], block)
    if isinstance(blocks, str):
        raise error(blocks, 0)
    asked = head[: words[0].end()]
    return Segment(prompt.strip(SPACES), blocks, BOUNDARIES[word], number, asked), len(head) + 2


def _read_duration(written: str, unit: str, block: int) -> int | str:
    """Convert a duration to blocks, or say what is wrong with it."""
    value, shown = float(written), _shorten(written)
    if unit == "s" and value <= 0:
        return f"the duration is {shown} s; use more than 0 seconds"
    step = block if unit == "f" else 1
    seconds = value if unit == "s" else value / step * convert_blocks_to_seconds(1, block)
    if seconds > MAX_SECONDS:
        return f"the duration is {shown}{unit}; one segment may last {MAX_SECONDS} s (a day) at most"
    if unit == "s":
        return convert_seconds_to_blocks(value, block)
    if value > 0 and value % step == 0:
        return int(value) // step
    low = math.floor(max(0, value) / step) * step
    fitting = " or ".join(f"{count}{unit}" for count in (low, low + step) if count)
    goal = f"blocks of {block} frames" if unit == "f" else "whole blocks"
    return f"a segment of {shown}{unit} does not fill {goal}; use {fitting}"


def _find_nearest(word: str) -> str | None:
    """Find the boundary that a word may be meant for: about as long, and at most one of its letters is missing."""
    for known in ("renew", "keep", "cut", "recache"):
        if abs(len(known) - len(word)) <= 2 and len(set(known) - set(word)) <= 1:
            return known
    return None


def _lower_ascii(word: str) -> str:
    """Lower ASCII words only: Python and JavaScript lower other letters differently."""
    return word.lower() if word.isascii() else word


def _shorten(text: str) -> str:
    """Cut a text to what a message may repeat of it, exactly as the page does; the error escapes it later."""
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."
