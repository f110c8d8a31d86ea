"""The blocks of a rolling video that have begun and are not finished, and what the next step does with them.

Neither finished latents nor counted noise give them back: each was predicted beside neighbours that were themselves in
flight. So they are part of the session (Rolling Forcing, arXiv 2509.25161).
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class InFlight:
    """Noisy blocks [1, F, C, h, w] on the CPU, oldest first, each a level of noise behind the one before."""

    blocks: tuple[Tensor, ...]
    level: int  # denoising steps that the oldest has behind it
    key: str  # of the step that noised them last

    @property
    def can_grow(self) -> bool:
        """Whether a block may follow: only while the newest has one step behind it."""
        return self.level == len(self.blocks)


@dataclass(frozen=True, slots=True)
class Step:
    """What the next step of a video does: one pass over blocks in flight or, block-wise, all passes of one block."""

    level: int = 0  # of the oldest block
    count: int = 1  # blocks
    enters: bool = True  # whether the newest of them begins as pure noise
    finishes: bool = True  # whether the oldest is finished

    @property
    def left(self) -> int:
        """Blocks in flight after it."""
        return self.count - self.finishes

    @property
    def level_after(self) -> int:
        """The level of the oldest block that is left."""
        return self.level if self.finishes else self.level + 1


def plan_joint_step(in_flight: InFlight | None, num_levels: int, *, grows: bool) -> Step:
    """Plan the next joint pass; if the video `grows`, a block enters where one may."""
    level, count = (in_flight.level, len(in_flight.blocks)) if in_flight else (0, 0)
    enters = grows and (in_flight is None or in_flight.can_grow)
    return Step(level, count + enters, enters, level == num_levels - 1)
