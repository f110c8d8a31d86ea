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
    # the prompt changes step by step over 3 blocks, along a line or a sphere; other noise from here on
    8s blend 3b | The harbour at dawn.
    8s blend 2s spherical seed 7 | The harbour by day.

Seconds snap to whole blocks, in each segment separately; blocks and (latent) frames must fit.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ..config import MAX_SEED
from ..errors import TimelineError
from ..units import FPS, MAX_SECONDS, convert_blocks_to_seconds, convert_seconds_to_blocks, count_pixel_frames
from .boundary import Blend, Boundary, Curve, spell_beginning, spell_switch

Refusal = Callable[[str, int], TimelineError]
"""From a problem and its index in a line to the error."""

MAX_CHARACTERS = 200_000  # of a script; hours of video have fewer


BOUNDARIES = {"": Boundary.RECACHE, **{boundary.word: boundary for boundary in Boundary}}
BLEND, SEED = "blend", "seed"
NOT_UNITS = {*BOUNDARIES, BLEND, SEED, *Curve}  # words that follow a unit; no word at all, too
UNITS = {unit: name[0] for name in ("seconds", "blocks", "frames") for unit in (name[0], name[:-1], name)}

SPACES = " \t\u00a0\u3000"  # with the no-break and the ideographic space of pasted text
LOOKALIKES = "｜│¦"  # bars that are not the plain one
SHOWN_CHARACTERS = 40  # of a word that a message repeats
# Each of these matches a text in one way only. Otherwise the time for a long text would grow with its square.
NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)")
DIGITS = re.compile("0*([0-9]{1,20})", re.ASCII)  # of a seed
WORD = re.compile(rf"[^{SPACES}]+")
LENGTH = rf"{NUMBER.pattern}[{SPACES}]*(?:{'|'.join(UNITS)})"
HEAD = re.compile(
    rf"{LENGTH}(?:[{SPACES}]+(?:{BLEND}[{SPACES}]+{LENGTH}(?:[{SPACES}]+[a-z]+)?|[a-z]+))?"
    rf"(?:[{SPACES}]+{SEED}[{SPACES}]+[0-9]+)?[{SPACES}]*[|{LOOKALIKES}]",
    re.IGNORECASE | re.ASCII,  # as in JavaScript
)

BLENDING_NOTE = "note: the blending blocks of a segment had begun under the prompt before it; later ones follow its own"


@dataclass(frozen=True, slots=True)
class Segment:
    """The blocks under one prompt."""

    prompt: str
    blocks: int
    boundary: Boundary = Boundary.RECACHE
    line: int = 0  # of the script, from 1
    asked: str = ""  # the duration as written
    seed: int | None = None  # of the noise from here on
    blend: Blend | None = None

    def __str__(self) -> str:
        return spell_switch(self.boundary, self.blend, self.seed)


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


def plan_ends(segments: Sequence[Segment], num_blocks: int) -> list[int | None]:
    """Plan with how many blocks a rolling video ends, for each segment of a script that follows `num_blocks` blocks.

    It ends with the script. Segments with a later cut behind them have no end: a cut drops what is in flight.
    """
    last_cut = max((index for index, each in enumerate(segments) if each.boundary is Boundary.CUT), default=0)
    end = num_blocks + sum(segment.blocks for segment in segments)
    return [None if index < last_cut else end for index in range(len(segments))]


def count_blending(segments: Sequence[Segment], begun: int, num_in_flight: int) -> list[int]:
    """Count the blocks of each segment that had begun under the prompts before it; empty for a block-wise video.

    `begun` blocks are in flight before the script, `num_in_flight` within it.
    """
    if not num_in_flight:
        return []
    before = [begun, *[num_in_flight] * (len(segments) - 1)]
    return [
        0 if segment.boundary is Boundary.CUT else min(blocks, segment.blocks)
        for segment, blocks in zip(segments, before, strict=True)
    ]


def report_timeline(segments: Sequence[Segment], block: int = 3, before: int = 0, blending: Sequence[int] = ()) -> str:
    """Describe the segments as a plain table. `before` counts the frames that the video already has.

    Of a rolling video, `blending` counts the blocks of each segment that had begun under another prompt.
    """
    numbers = ["segment", "from", "to", "blocks", "frames", "pixel frames", *(["blending"] if blending else [])]
    rows = [[*numbers, "boundary", "duration"]]
    notes = [BLENDING_NOTE] if any(blending) else []
    start = before
    for index, segment in enumerate(segments, start=1):
        end = start + segment.blocks * block
        clock = [f"{convert_blocks_to_seconds(frame, 1):.2f}" for frame in (start, end)]
        counts = [segment.blocks, end - start, count_pixel_frames(end) - count_pixel_frames(start)]
        counts += blending[index - 1 : index]
        length = f"{spell_blocks(segment.blocks)} = {convert_blocks_to_seconds(segment.blocks, block):g} s"
        how = str(segment) if start else spell_beginning(segment.seed)
        words = [how, f"{segment.asked} asked, {length}"]
        rows.append([str(index), *clock, *map(str, counts), *words])
        if start == 0 and (segment.blend or segment.boundary is not Boundary.RECACHE):
            word = BLEND if segment.blend else segment.boundary.word
            notes.append(f"note: '{word}' on segment {index} has no effect: the video begins there")
        elif segment.blend and segment.blend.blocks > segment.blocks:
            notes.append(f"note: segment {index} ends before its blend of {spell_blocks(segment.blend.blocks)} does")
        start = end
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = [
        [*map(str.rjust, row, widths[: len(numbers)]), *map(str.ljust, row[-2:], widths[-2:])]  # words to the left
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
    unit = _find_unit(head, value, "duration", error)
    words = list(WORD.finditer(head, unit.end()))
    word = _lower_ascii(words[0][0]) if words else ""
    if not bar:
        behind = words[0] if word and word in BOUNDARIES else unit
        raise error("a bar is missing between duration and prompt, as in 8s | a prompt", behind.end())
    boundary, blend, seed = Boundary.RECACHE, None, None
    if word == BLEND:
        blend, words = _parse_blend(head, words, block, error)
    elif word in BOUNDARIES:
        boundary, words = BOUNDARIES[word], words[1:]
    elif word != SEED:
        near = _find_nearest(word)
        cure = f"did you mean {near}?" if near else "use renew, keep, cut or blend, or no word to recache"
        raise error(f"unknown boundary '{_shorten(words[0][0])}'; {cure}", words[0].start())
    if words and _lower_ascii(words[0][0]) == SEED:
        seed, words = _parse_seed(words, error)
    if words:
        raise error(f"'{_shorten(words[0][0])}' is one word too many before the bar", words[0].start())

    blocks = _read_duration(value[0], UNITS[_lower_ascii(unit[0])], block)
    if isinstance(blocks, str):
        raise error(blocks, 0)
    asked = head[: unit.end()]
    return Segment(prompt.strip(SPACES), blocks, boundary, number, asked, seed, blend), len(head) + 2


def _find_unit(head: str, value: re.Match, what: str, error: Refusal) -> re.Match:
    """Find the unit behind a number. Raises TimelineError if there is none."""
    word = WORD.search(head, value.end())
    unit = _lower_ascii(word[0]) if word else ""
    if word is None or unit in NOT_UNITS:
        written = _shorten(value[0])
        choices = f"{written}s (seconds), {written}b (blocks) or {written}f (frames)"
        raise error(f"the {what} has no unit; write {choices}", value.end())
    if unit not in UNITS:
        raise error(f"unknown unit '{_shorten(word[0])}'; use s (seconds), b (blocks) or f (frames)", word.start())
    return word


def _parse_blend(head: str, words: list[re.Match], block: int, error: Refusal) -> tuple[Blend, list[re.Match]]:
    """Read `blend LENGTH [CURVE]`: the blend, and the words behind it. Raises TimelineError."""
    value = NUMBER.match(head, words[1].start()) if len(words) > 1 else None
    if value is None:
        raise error("a blend needs its length, as in 8s blend 3b | a prompt", words[0].end())
    unit = _find_unit(head, value, "blend", error)
    blocks = _read_duration(value[0], UNITS[_lower_ascii(unit[0])], block, "blend")
    if isinstance(blocks, str):
        raise error(blocks, value.start())
    rest = [word for word in words if word.start() >= unit.end()]
    curve = _lower_ascii(rest[0][0]) if rest else ""
    if curve in list(Curve):
        return Blend(blocks, Curve(curve)), rest[1:]
    return Blend(blocks), rest


def _parse_seed(words: list[re.Match], error: Refusal) -> tuple[int, list[re.Match]]:
    """Read `seed NUMBER`: the seed, and the words behind it. Raises TimelineError."""
    digits = DIGITS.fullmatch(words[1][0]) if len(words) > 1 else None
    if digits is None or int(digits[1]) > MAX_SEED:
        place = words[1].start() if len(words) > 1 else words[0].end()
        raise error(f"a seed is a whole number from 0 to {MAX_SEED}, as in 8s seed 7 | a prompt", place)
    return int(digits[1]), words[2:]


def _read_duration(written: str, unit: str, block: int, kind: str = "segment") -> int | str:
    """Convert the duration of a segment, or of what else `kind` names, to blocks, or say what is wrong with it."""
    value, shown = float(written), _shorten(written)
    if unit == "s" and value <= 0:
        return f"the duration is {shown} s; use more than 0 seconds"
    step = block if unit == "f" else 1
    seconds = value if unit == "s" else value / step * convert_blocks_to_seconds(1, block)
    if seconds > MAX_SECONDS:
        return f"the duration is {shown}{unit}; one {kind} may last {MAX_SECONDS} s (a day) at most"
    if unit == "s":
        return convert_seconds_to_blocks(value, block)
    if value > 0 and value % step == 0:
        return int(value) // step
    low = math.floor(max(0, value) / step) * step
    fitting = " or ".join(f"{count}{unit}" for count in (low, low + step) if count)
    goal = f"blocks of {block} frames" if unit == "f" else "whole blocks"
    return f"a {kind} of {shown}{unit} does not fill {goal}; use {fitting}"


def _find_nearest(word: str) -> str | None:
    """Find the boundary that a word may be meant for: about as long, and at most one of its letters is missing."""
    for known in ("renew", "keep", "cut", "blend", "recache"):
        if abs(len(known) - len(word)) <= 2 and len(set(known) - set(word)) <= 1:
            return known
    return None


def _lower_ascii(word: str) -> str:
    """Lower ASCII words only: Python and JavaScript lower other letters differently."""
    return word.lower() if word.isascii() else word


def _shorten(text: str) -> str:
    """Cut a text to what a message may repeat of it, exactly as the page does; the error escapes it later."""
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."
