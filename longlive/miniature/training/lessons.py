"""Lessons of the network: blocks of a clip to predict, and the past that they see.

Dimension key: B clips, F frames, C channels, H rows and W columns of cells, L rows and D width of prompt embeddings.
"""

import functools
import random
from dataclasses import dataclass

import torch
from torch import Tensor

from ...config import Positions, RolloutConfig
from ...model.text_encoder import TEXT_DIM, HashedWords
from ...model.wan import Geometry
from ...session.boundary import Boundary
from ..world import FRAME_STEP, SIZE, Clip
from .bank import FIRST_BLOCKS, FRAMES, Bank, BankPlan, Pattern
from .forcing import ROWS, AttentionMask, NoisyPass, TeacherForcingPlan, make_mask, plan_teacher_forcing

GEOMETRY = Geometry(dim=256, ffn_dim=1024, num_heads=2, num_layers=4, freq_dim=256, text_dim=TEXT_DIM)
CELLS = (8, 8)
BLOCK = RolloutConfig().block
FEWER_FRAMES = 15  # of a cheaper plan; the window rolls once
WHOLE_SHARE = 0.2  # of whole clips, among those without a switch
MAX_GAP = 80  # blocks between the sink and the rest, in half of the plans with absolute positions
LOST = 0.5  # root mean square between a past and the truth above which a film teaches nothing
COMPARED = 6  # latents before a trained block that are compared for that
PATTERN_SHARES: dict[Pattern, float] = {  # of the steps
    (): 0.46, (3,): 0.12, (6,): 0.10, (9,): 0.07, (12,): 0.08, (15,): 0.06, (3, 12): 0.02, (6, 12): 0.03,
    (6, 15): 0.03, (9, 18): 0.03,
}  # fmt: skip
PATTERNS = tuple(PATTERN_SHARES)
PATTERN_SIZES: dict[Pattern, int] = {  # clips; switches that come early cost least
    (): 500, (3,): 1500, (6,): 1000, (9,): 500, (12,): 500, (15,): 350, (3, 12): 150, (6, 12): 150, (6, 15): 150,
    (9, 18): 150,
}  # fmt: skip
BLOCKS_AFTER_SWITCH = 4  # that are trained
STREAMED: Pattern = (12,)  # the switch whose films go on
PERIOD = SIZE // FRAME_STEP  # latents after which a thing that moves is where it was
SETTLED = 10  # latents after a switch: it has faded, and the VAE has forgotten what was before


def count_frames(pattern: Pattern) -> int:
    """Count the latents of a pattern's clips that lessons use."""
    return min(FRAMES, pattern[-1] + BLOCKS_AFTER_SWITCH * BLOCK) if pattern else FRAMES


BANK_PLAN: BankPlan = {
    **{pattern: (PATTERN_SIZES[pattern], count_frames(pattern)) for pattern in PATTERNS},
    STREAMED: (PATTERN_SIZES[STREAMED], STREAMED[-1] + SETTLED + PERIOD),
    FIRST_BLOCKS: (8000, BLOCK),
}
UNSEEN_PLAN: BankPlan = {(): (8, FRAMES), STREAMED: (8, FRAMES), FIRST_BLOCKS: (48, BLOCK)}


@dataclass(frozen=True, slots=True)
class Lesson:
    """Blocks to predict, and the past they see; `truth` and `past` [B, F, C, H, W] have the frames of the plan."""

    plan: TeacherForcingPlan
    mask: AttentionMask
    rows_BLD: Tensor  # the prompts of the plan's segments
    truth: Tensor
    past: Tensor
    weights_B: Tensor  # of each film


def make_lesson(
    bank: Bank, pattern: Pattern, chosen: list[int], past: Tensor, plan: TeacherForcingPlan, mask: AttentionMask
) -> Lesson:
    """Make a lesson of whole clips; a film whose past is lost before the first trained block weighs nothing."""
    encoded = bank[pattern]
    truth = encoded.latents[chosen].float()
    rows = torch.stack([embed_prompts(encoded.clips[i])[: plan.segments * ROWS] for i in chosen])
    first = min(group.frame for group in plan.noisy)
    before = slice(max(0, first - COMPARED), first)
    return Lesson(plan, mask, rows, truth, past, weigh(past[:, before] - truth[:, before]))


def weigh(difference_BFCHW: Tensor) -> Tensor:
    """Weigh films by how far their past is from the truth: 1, or 0 for a lost one."""
    return (difference_BFCHW.square().mean((1, 2, 3, 4)).sqrt() <= LOST).float()


def make_opening(bank: Bank, chosen: list[int]) -> Lesson:
    """Make a lesson of first blocks, which have no past."""
    plan = build_plan(RolloutConfig(), (), (0,), Boundary.RECACHE, 0)
    encoded = bank[FIRST_BLOCKS]
    rows = torch.stack([embed_prompts(encoded.clips[i]) for i in chosen])
    truth = encoded.latents[chosen].float()
    return Lesson(*plan, rows, truth, truth, torch.ones(len(chosen)))


def choose_config(draw: random.Random) -> RolloutConfig:
    """Choose mostly the released window, else one that the evaluation compares with it."""
    window, sink = draw.choices([(12, 3), (12, 0), (21, 0)], [0.7, 0.15, 0.15])[0]
    return RolloutConfig(window=window, sink=sink, positions=draw.choice(list(Positions)))


def choose_plan(
    draw: random.Random, config: RolloutConfig, pattern: Pattern
) -> tuple[TeacherForcingPlan, AttentionMask]:
    """Choose which blocks of a clip to train, and the past they see."""
    if pattern:
        starts = range(pattern[-1], count_frames(pattern), BLOCK)
    else:
        starts = range(BLOCK, FRAMES if config.window > 12 or draw.random() < WHOLE_SHARE else FEWER_FRAMES, BLOCK)
    boundary = draw.choice((Boundary.RECACHE, Boundary.RENEW))
    gap = 0
    if config.positions is Positions.ABSOLUTE and config.sink and draw.random() < 0.5:
        gap = BLOCK * draw.randrange(MAX_GAP)
    return build_plan(config, pattern, tuple(starts), boundary, gap)


@functools.lru_cache(maxsize=1024)
def build_plan(
    config: RolloutConfig, pattern: Pattern, starts: tuple[int, ...], boundary: Boundary, gap: int
) -> tuple[TeacherForcingPlan, AttentionMask]:
    switches = [(0, Boundary.CUT), *((frame, boundary) for frame in pattern)]
    passes = [NoisyPass(start, config.block) for start in starts]
    plan = plan_teacher_forcing(config, switches, passes, GEOMETRY.num_layers, gap=gap)
    return plan, make_mask(plan, GEOMETRY.grid(*CELLS), GEOMETRY.head_dim, GEOMETRY.text_len)


def embed_prompts(clip: Clip) -> Tensor:
    """Embed the prompts of a clip [L, D], `ROWS` rows each."""
    return torch.cat([embed_prompt(str(scene)) for _, scene in clip.scenes])


@functools.lru_cache(maxsize=4096)
def embed_prompt(prompt: str) -> Tensor:
    """Embed a prompt [ROWS, D]."""
    return HashedWords(rows=ROWS)(prompt)[0]
