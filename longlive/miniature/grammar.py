"""The prompts of the miniature's world: one thing of one colour that moves over one background.

    a red ring moves left at night
    a blue square stays still by day from the north west

No two attributes share a word, because the model does not see the order of words.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from ..errors import ScriptError
from ..model.text_encoder import split_words


class Colour(StrEnum):
    RED = "red"
    YELLOW = "yellow"
    GREEN = "green"
    CYAN = "cyan"
    BLUE = "blue"
    PINK = "pink"


class Shape(StrEnum):
    RING = "ring"
    SQUARE = "square"
    TRIANGLE = "triangle"


class Motion(StrEnum):
    LEFT = "left"
    RIGHT = "right"
    UP = "up"
    DOWN = "down"
    STILL = "still"


class Background(StrEnum):
    NIGHT = "night"
    DUSK = "dusk"
    DAY = "day"


PREPOSITION = {Background.NIGHT: "at", Background.DUSK: "at", Background.DAY: "by"}
NORTH_TO_SOUTH, WEST_TO_EAST = ("north", "", "south"), ("west", "", "east")
Start = tuple[int, int]
"""Where a thing starts: rows -1 (north) .. 1 (south) and columns -1 (west) .. 1 (east); (0, 0) is the middle."""

ATTRIBUTES = {"colour": Colour, "shape": Shape, "motion": Motion, "background": Background}
FILLERS = frozenset("a an the moves move moving stays stay at by from in on and it".split())
COMPASS = frozenset(filter(None, NORTH_TO_SOUTH + WEST_TO_EAST))
VOCABULARY = FILLERS | COMPASS | {word.value for words in ATTRIBUTES.values() for word in words}


@dataclass(frozen=True, slots=True)
class Scene:
    """What a prompt says. The start matters only where a video begins, and after a cut."""

    colour: Colour
    shape: Shape
    motion: Motion
    background: Background
    start: Start = (0, 0)

    def __str__(self) -> str:
        verb = "stays" if self.motion is Motion.STILL else "moves"
        place = f"{PREPOSITION[self.background]} {self.background}"
        sentence = f"a {self.colour} {self.shape} {verb} {self.motion} {place}"
        if self.start == (0, 0):
            return sentence
        row, column = self.start
        return " ".join(filter(None, [sentence, "from the", NORTH_TO_SOUTH[row + 1], WEST_TO_EAST[column + 1]]))


def find_problems(prompt: str) -> list[str]:
    """Find what the miniature cannot follow in a prompt, one sentence each; none for a prompt of the grammar."""
    words = split_words(prompt)
    found = []
    if unknown := sorted(set(words) - VOCABULARY):
        known = ", ".join(word.value for kind in ATTRIBUTES.values() for word in kind)
        found.append(f"{', '.join(map(repr, unknown))} left out of the prompt {prompt!r}: the miniature knows {known}")
    for name, kind in ATTRIBUTES.items():
        named = sorted(set(words) & {word.value for word in kind})
        if len(named) != 1:
            problem = f"names {' and '.join(named)}" if named else f"names no {name}"
            found.append(f"the prompt {prompt!r} {problem}; the miniature needs one {name}: {', '.join(kind)}")
    for names in (NORTH_TO_SOUTH, WEST_TO_EAST):
        if len(both := [name for name in names if name and name in words]) > 1:
            found.append(f"the prompt {prompt!r} begins in the {' and the '.join(both)}; choose one")
    return found


def parse_prompt(prompt: str) -> Scene:
    """Parse a prompt. Raises ScriptError unless it names each attribute once and nothing else."""
    if found := find_problems(prompt):
        raise ScriptError(found[0])
    words = set(split_words(prompt))
    colour, shape, motion, background = (
        next(word for word in kind if word.value in words) for kind in ATTRIBUTES.values()
    )
    row, column = (sum(sign * (name in words) for name, sign in zip(names, (-1, 0, 1), strict=True) if name)
                   for names in (NORTH_TO_SOUTH, WEST_TO_EAST))  # fmt: skip
    return Scene(colour, shape, motion, background, (row, column))  # type: ignore[arg-type]


def list_scenes() -> Iterator[Scene]:
    """List every scene that starts in the middle."""
    for attributes in itertools.product(*ATTRIBUTES.values()):
        yield Scene(*attributes)  # type: ignore[arg-type]
