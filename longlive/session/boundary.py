"""What happens to the KV cache and to the prompt where a segment of a video begins (LongLive §3.1)."""

from dataclasses import dataclass
from enum import StrEnum

from ..errors import ConfigError

MAX_BLEND = 1000  # blocks: twelve minutes


class Boundary(StrEnum):
    """What happens to the KV cache where a segment begins."""

    RECACHE = "recache"  # recompute the window under the new prompt, keep the sink
    RENEW = "renew"  # recompute the window under the new prompt, sink included
    KEEP = "keep"  # keep the KV cache, change only the text
    CUT = "discard"  # empty the KV cache, the sink included

    @property
    def word(self) -> str:
        """The word that a script has for it."""
        return "cut" if self is Boundary.CUT else self.value


class Curve(StrEnum):
    """The way between two prompt embeddings."""

    LINEAR = "linear"
    SPHERICAL = "spherical"


@dataclass(frozen=True, slots=True)
class Blend:
    """How a prompt becomes the next one: step by step over `blocks` blocks, with a recache at each step.

    Raises ConfigError for a number of blocks out of range.
    """

    blocks: int
    curve: Curve = Curve.LINEAR

    def __post_init__(self) -> None:
        if not 1 <= self.blocks <= MAX_BLEND:
            raise ConfigError(f"the blend takes {self.blocks} blocks; use a number from 1 to {MAX_BLEND}")


def spell_switch(boundary: Boundary, blend: Blend | None, seed: int | None) -> str:
    """Write a switch in the words of a script: `keep`, `blend 3b spherical seed 7`."""
    words = boundary.word
    if blend:
        words = f"blend {blend.blocks}b" + (f" {blend.curve}" if blend.curve is not Curve.LINEAR else "")
    return f"{words}{_spell_seed(seed)}"


def spell_beginning(seed: int | None) -> str:
    """Write the beginning of a video, where no boundary has an effect: `start`, `start seed 7`."""
    return f"start{_spell_seed(seed)}"


def _spell_seed(seed: int | None) -> str:
    return "" if seed is None else f" seed {seed}"
