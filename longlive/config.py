"""The numbers of a rollout: window, sink, block, steps, positions (LongLive §3.3; defaults as released).

Knows no tensor. All counts are latent frames; *window* includes the sink and the frames that attend.
"""

import reprlib
from dataclasses import asdict, dataclass
from enum import StrEnum

from .errors import ConfigError
from .untrusted import conform_fields

TABLE_FRAMES = 1024  # rows of the reference's rotary table: absolute positions end here
MAX_WINDOW = 16 * TABLE_FRAMES  # frames: more than an hour of video
MAX_SEED = 2**64 - 1
MAX_STEP = 1000
ROLLING_BLOCK = 3  # frames of a block and of the sink in Rolling Forcing


class Positions(StrEnum):
    """How a frame's temporal position is counted. Unbounded positions are the reference's infinity variant."""

    ABSOLUTE = "absolute"  # from the first frame; ends at TABLE_FRAMES
    UNBOUNDED = "unbounded"  # likewise, but the sink moves to just before the window's other frames; never ends


class RolloutKind(StrEnum):
    """Which blocks are denoised together."""

    BLOCKWISE = "block-wise"  # one, through all steps (LongLive, Self-Forcing)
    ROLLING = "rolling"  # as many as there are steps, each a step behind the one before (Rolling Forcing)


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutConfig:
    """How a video is rolled out. The defaults are LongLive's as released; `roll` has Rolling Forcing's."""

    window: int = 12  # frames a pass may attend, the sink and its own included
    sink: int = 3  # first frames, kept permanently
    block: int = 3  # frames denoised together
    steps: tuple[int, ...] = (1000, 750, 500, 250)  # denoising steps, 1..1000, before the shift warps them
    shift: float = 5.0  # flow-matching shift
    context_noise: float = 0.0  # timestep, 0 to below 1000, of clean passes and recaches; sampling adds no noise
    positions: Positions = Positions.ABSOLUTE
    kind: RolloutKind = RolloutKind.BLOCKWISE

    @classmethod
    def roll(cls, *, steps: tuple[int, ...] = (1000, 800, 600, 400, 200), **fields) -> "RolloutConfig":
        """Return Rolling Forcing's numbers as released (arXiv 2509.25161): window 21, five levels of noise."""
        return cls(**{"window": 21, "positions": Positions.UNBOUNDED, **fields}, steps=steps, kind=RolloutKind.ROLLING)

    def __post_init__(self) -> None:
        conform_fields(self)
        if self.block < 1:
            raise ConfigError(f"block is {self.block}; a block holds at least 1 frame")
        if self.sink < 0:
            raise ConfigError(f"sink is {self.sink}; use 0 for no sink, or the number of frames to keep")
        if self.recent < self.block:
            raise ConfigError(
                f"window {self.window} does not hold sink {self.sink} and block {self.block}; "
                f"use a window of at least {self.sink + self.block}"
            )
        if self.positions is Positions.ABSOLUTE and self.window > TABLE_FRAMES:
            raise ConfigError(
                f"window is {self.window}, but absolute positions end at {TABLE_FRAMES} frames; "
                f"use a smaller window or unbounded positions"
            )
        if self.window > MAX_WINDOW:
            raise ConfigError(f"window is {self.window}; a block may attend {MAX_WINDOW} frames at most")
        if not self.steps:
            raise ConfigError("steps is empty; give at least one, for example 1000, 750, 500, 250")
        descending = all(a > b for a, b in zip(self.steps, self.steps[1:], strict=False))
        if not descending or self.steps[0] > MAX_STEP or self.steps[-1] < 1:
            raise ConfigError(
                f"steps are {reprlib.repr(list(self.steps))}; they must fall from at most {MAX_STEP} to at least 1"
            )
        if self.shift <= 0:
            raise ConfigError(f"shift is {self.shift}; use a positive number (the released models use 5)")
        if not 0 <= self.context_noise < MAX_STEP:
            raise ConfigError(f"context noise is {self.context_noise}; it is a timestep from 0 to below {MAX_STEP}")
        if self.kind is RolloutKind.ROLLING:
            self._check_rolling()

    def _check_rolling(self) -> None:
        """Check what Rolling Forcing was trained with, and that its joint pass fits. Raises ConfigError."""
        if (self.block, self.sink) != (ROLLING_BLOCK, ROLLING_BLOCK):
            raise ConfigError(
                f"block is {self.block} and sink is {self.sink}; a rolling video has {ROLLING_BLOCK} frames in each, "
                f"as its weights were trained"
            )
        least = self.sink + self.block * len(self.steps)
        if self.window < least or self.window % self.block:
            raise ConfigError(
                f"window is {self.window}; a rolling video of {len(self.steps)} steps needs a multiple of {self.block} "
                f"of at least {least}: the sink and a block for each step"
            )
        if self.positions is not Positions.UNBOUNDED:
            raise ConfigError("positions are absolute; a rolling video has unbounded ones, as its sink always moves")

    @property
    def recent(self) -> int:
        """Frames of the window beside the sink; they roll."""
        return self.window - self.sink

    @property
    def num_in_flight(self) -> int:
        """Blocks that are not finished when a block is, in the midst of a video."""
        return len(self.steps) - 1 if self.kind is RolloutKind.ROLLING else 0

    @property
    def passes_per_block(self) -> int:
        """Denoising passes for each block, in the midst of a video."""
        return 1 if self.kind is RolloutKind.ROLLING else len(self.steps)

    def as_dict(self) -> dict:
        """Return the fields as plain JSON values; the kind is named where it is not block-wise."""
        fields = asdict(self) | {"steps": list(self.steps), "positions": str(self.positions), "kind": str(self.kind)}
        if self.kind is RolloutKind.BLOCKWISE:  # as before there was another kind: keys of blocks hash this
            del fields["kind"]
        return fields


def check_seed(seed: int) -> None:
    """Check the seed of noise. Raises ConfigError if it is out of range."""
    if not 0 <= seed <= MAX_SEED:
        raise ConfigError(f"seed is {seed}; it must be from 0 to {MAX_SEED}")
