"""Random timeline scripts, and what the two parsers, Python's and the editor's, read from them."""

import json
import random
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from longlive.errors import TimelineError
from longlive.session.timeline import parse_timeline

NODE = shutil.which("node")
OUTCOMES = Path(__file__).parents[1] / "web" / "outcomes.mjs"
PIECES = (
    *"0123456789", "8s", "10b", "30f", "7.5 s", "86400s", "115201b", "1e3", "+", "-", ".", ",", "_", "1" * 50, "0.001",
    "s", "b", "f", "S", "B", "sec", "seconds", "BLOCKS", "frame", "recache", "renew", "keep", "cut", "CUT", "cutt",
    "recahce", "discard", "blend", "blend 3b", "blnd", "spherical", "linear", "seed", "seed 7",
    " seed 18446744073709551616", "007",
    "k", "K", "\u212a", "ſ", "İ", "ı", "ß", "ﬀ", "s\u0307", "a boat", "# ", "#", "|", "|", " | ",
    "｜", "│", "¦", " ", " ", "  ", "\t", "\u00a0", "\u3000", "\u2003", "\u200b", "\ufeff", "\n", "\n", "\n ", "\n\t",
    "\r", "\r\n", "\u2028", "\u0085", "\v", "\f", "\x1c", "\0", "🚣", "猫", "e\u0301", "\u0660", "８", "'", '"', "\\",
    "${x}", "{0}", "%s", "<b>",
)  # fmt: skip

Outcome = list[list[object]] | list[object]  # segments; or line, column and problem


def draw_scripts(seed: int, count: int) -> Iterator[tuple[str, int]]:
    """Make scripts of `PIECES` with the frames of a block; the same seed gives the same scripts."""
    draw = random.Random(seed)
    for _ in range(count):
        lines = [_draw_line(draw) for _ in range(draw.randint(1, 4))]
        yield draw.choice(("\n", "\n", "\r\n", "\r")).join(lines), draw.choice((1, 2, 3, 3, 3, 5, 7))


def read_in_python(script: str, block: int) -> Outcome:
    """Read a script with Python's parser."""
    try:
        segments = parse_timeline(script, block)
    except TimelineError as error:
        return [error.line, error.column, error.problem]
    return [
        [
            *(s.prompt, s.blocks, str(s.boundary), s.line, s.asked),
            None if s.seed is None else str(s.seed),
            [s.blend.blocks, str(s.blend.curve)] if s.blend else None,
        ]
        for s in segments
    ]


def read_in_editor(scripts: Sequence[tuple[str, int]]) -> list[Outcome]:
    """Read scripts with the editor's parser, all in one process."""
    assert NODE
    lines = "".join(json.dumps(script) + "\n" for script in scripts)
    done = subprocess.run([NODE, OUTCOMES], input=lines, capture_output=True, text=True, encoding="utf-8", check=True)
    return [json.loads(line) for line in done.stdout.split("\n") if line]


def list_differences(scripts: Sequence[tuple[str, int]]) -> list[tuple[str, Outcome, Outcome]]:
    """List the scripts that the parsers read differently, each with both outcomes."""
    twins = zip(scripts, read_in_editor(scripts), strict=True)
    return [(text, mine, theirs) for (text, block), theirs in twins if (mine := read_in_python(text, block)) != theirs]


def _draw_line(draw: random.Random) -> str:
    """Make a line: one in five of random pieces; the others are right, some with one piece changed."""
    if draw.random() < 0.2:
        return "".join(draw.choices(PIECES, k=draw.randint(0, 12)))
    number = draw.choice(("8s", "7.5 s", "30 frames", "42f", "10b", "2.0BLOCKS", "1b", f"{draw.uniform(0, 1e5)}s"))
    word = draw.choice(("", "", "", " cut", " Keep", " renew", " recache", "\tCUT"))
    word = draw.choice((word, word, word, " blend 3b", " Blend 1.5 seconds spherical", " blend 30f Linear"))
    word += draw.choice(("", "", "", " seed 7", "\tSEED 007", " seed 18446744073709551615"))
    line = draw.choice((f"{number}{word} | a boat", f"{number}{word} | a boat", "  in the rain", "# rain", ""))
    if draw.random() < 0.3:
        place = draw.randint(0, len(line))
        line = line[:place] + draw.choice(PIECES) + line[place + draw.randint(0, 2) :]
    return line
