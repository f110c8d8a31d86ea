"""Joint passes that a training in the rolling kind takes from videos: of their ramp, their midst and their flush."""

import random
from dataclasses import dataclass

from ...config import RolloutConfig
from .bank import Pattern
from .forcing import NoisyPass
from .lessons import BLOCK, STREAMED

ROLLING = RolloutConfig.roll()
LEVELS = len(ROLLING.steps)
JOINT = LEVELS * BLOCK  # frames of a joint pass in the midst of a video
OPENINGS: Pattern = (JOINT,)  # clips of which the ramp is trained
LATEST = 36  # the last frame at which a trained joint pass begins


@dataclass(frozen=True, slots=True)
class JointPass:
    """A joint pass, and the level of its oldest block."""

    noisy: NoisyPass
    level: int

    @property
    def levels(self) -> list[int]:
        """The level of each frame."""
        return [self.level - frame // BLOCK for frame in range(self.noisy.frames)]


def make_joint_pass(start: int, blocks: int, *, is_ramp: bool = False) -> JointPass:
    """Make the pass over so many blocks: all, those of a ramp or those of a flush."""
    return JointPass(NoisyPass(start, blocks * BLOCK), blocks - 1 if is_ramp else LEVELS - 1)


def choose_midst(draw: random.Random) -> list[JointPass]:
    starts = sorted(draw.sample(range(BLOCK, 5 * BLOCK, BLOCK), 2))
    return [make_joint_pass(start, LEVELS) for start in starts]


def choose_ramp(draw: random.Random) -> list[JointPass]:
    return [make_joint_pass(0, blocks, is_ramp=True) for blocks in sorted(draw.sample(range(2, LEVELS + 1), 3))]


def choose_flush(draw: random.Random) -> list[JointPass]:
    start = draw.randrange(BLOCK, 5 * BLOCK, BLOCK)
    return [make_joint_pass(start + BLOCK * i, LEVELS - 1 - i) for i in range(LEVELS - 1)]


def choose_late(draw: random.Random) -> list[JointPass]:
    return [make_joint_pass(draw.randrange(ROLLING.window, LATEST + BLOCK, BLOCK), LEVELS)]


def choose_after_switch(draw: random.Random) -> list[JointPass]:
    """Choose passes after a switch; the pass at it is learnt from own rollouts, whose blocks in flight were made."""
    first = STREAMED[-1] + BLOCK
    starts = sorted(draw.sample(range(first, first + LEVELS * BLOCK, BLOCK), 2))
    return [make_joint_pass(start, LEVELS) for start in starts]


KINDS = (
    ((), choose_midst),
    (OPENINGS, choose_ramp),
    ((), choose_flush),
    ((), choose_late),
    (STREAMED, choose_after_switch),
)
