"""Law: teacher forcing under its mask is the streaming rollout, moved sink, recache and joint passes included."""

from collections.abc import Iterable
from dataclasses import replace

import pytest
import tiny
import torch

from longlive.config import Positions, RolloutConfig
from longlive.miniature.training.forcing import (
    ROWS,
    NoisyPass,
    TeacherForcingPlan,
    make_mask,
    plan_teacher_forcing,
    predict_flow,
)
from longlive.rollout.rolling_rollout import RollingRollout
from longlive.session.boundary import Boundary

CUT, RECACHE, RENEW, KEEP = Boundary.CUT, Boundary.RECACHE, Boundary.RENEW, Boundary.KEEP
RELEASED, UNBOUNDED = RolloutConfig(), RolloutConfig(positions=Positions.UNBOUNDED)
NO_SINK, LONG = RolloutConfig(sink=0), RolloutConfig(window=21, sink=0)
ROLLING = RolloutConfig.roll()
BATCH, CELLS = 2, (4, 2)
OLDEST, STEP = 100.0, 150.0  # timesteps of the blocks of a pass: of the oldest, and from each to the next
MODEL = tiny.model(replace(tiny.GEOMETRY, text_len=40))
LAYERS = MODEL.geometry.num_layers


def list_blocks(starts: Iterable[int]) -> list[NoisyPass]:
    """List the passes over one block each."""
    return [NoisyPass(start, RELEASED.block) for start in starts]


def list_joint(starts: Iterable[int], blocks: int) -> list[NoisyPass]:
    """List the joint passes over so many blocks."""
    return [NoisyPass(start, blocks * ROLLING.block) for start in starts]


RAMP = [NoisyPass(0, blocks * ROLLING.block) for blocks in range(1, 6)]
FLUSH = [NoisyPass(24 + 3 * done, 12 - 3 * done) for done in range(4)]
VIDEOS = [  # settings, switches, passes to train
    *(
        (config, switches, list_blocks(starts))
        for config in (RELEASED, UNBOUNDED)
        for switches, starts in (
            ([(0, CUT)], range(0, 15, 3)),
            ([(0, CUT)], range(0, 27, 3)),
            ([(0, CUT)], range(24, 27, 3)),
            ([(0, CUT), (6, RECACHE)], range(6, 21, 3)),
            ([(0, CUT), (12, RECACHE)], range(12, 24, 3)),
            ([(0, CUT), (15, RECACHE)], range(15, 24, 3)),
            ([(0, CUT), (15, RENEW)], range(15, 27, 3)),
            ([(0, CUT), (6, RECACHE), (18, RECACHE)], range(18, 30, 3)),
            ([(0, CUT), (9, RENEW), (15, KEEP)], range(6, 24, 3)),
        )
    ),
    (NO_SINK, [(0, CUT), (15, RECACHE)], list_blocks(range(15, 24, 3))),
    (LONG, [(0, CUT)], list_blocks(range(0, 30, 3))),
    (ROLLING, [(0, CUT)], RAMP + list_joint(range(3, 12, 3), 5)),
    (ROLLING, [(0, CUT)], list_joint(range(18, 39, 3), 5)),
    (ROLLING, [(0, CUT)], list_joint([45], 5)),
    (ROLLING, [(0, CUT)], [*list_joint([21], 5), *FLUSH]),
    (ROLLING, [(0, CUT), (12, KEEP)], list_joint(range(6, 24, 3), 5)),
    (ROLLING, [(0, CUT), (12, RECACHE), (30, RECACHE)], list_joint(range(12, 36, 3), 5)),
    (ROLLING, [(0, CUT), (27, RENEW)], list_joint(range(27, 45, 3), 5)),
]


def list_timesteps(noisy: NoisyPass) -> list[float]:
    """List the timesteps of the blocks of a pass; no two are equal."""
    return [OLDEST + STEP * number for number in range(noisy.frames // RELEASED.block)]


def predict_streamed(config, switches, passes, clean, noisy, prompts) -> torch.Tensor:
    """Predict the flow of the noisy frames of all passes with the rollout's own KV cache."""
    texts = [MODEL.read_prompt(prompt) for prompt in prompts]
    rollout, found, segment = RollingRollout(MODEL, config, (BATCH, 16, *CELLS)), [], 0
    given = iter(noisy.split([each.frames for each in passes], dim=1))
    boundaries = dict(switches)
    for start in range(0, passes[-1].start + 1, config.block):
        if start and start in boundaries:
            segment += 1
            if boundaries[start] is not KEEP:
                rollout.recache(start, clean[:, :start], texts[segment], renew=boundaries[start] is RENEW)
        for each in passes:
            if each.start == start:
                place = rollout.window.place_block(*each)
                found.append(rollout._pass(next(given), tuple(list_timesteps(each)), texts[segment], place))
        rollout.clean_pass(start, clean[:, start : start + config.block], texts[segment])
    return torch.cat(found, dim=1)


def predict_forced(plan: TeacherForcingPlan, passes, clean, noisy, prompts) -> torch.Tensor:
    latents = torch.cat([clean[:, [group.frame for group in plan.clean]], noisy], dim=1)
    timesteps = [timestep for each in passes for timestep in list_timesteps(each) for _ in range(RELEASED.block)]
    times = torch.tensor([[0.0] * len(plan.clean) + timesteps]).expand(BATCH, -1)
    geometry = MODEL.geometry
    mask = make_mask(plan, geometry.grid(*CELLS), geometry.head_dim, geometry.text_len)
    return predict_flow(MODEL, plan, mask, latents, times, torch.cat(prompts, dim=1))


def draw_latents(passes) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw clean frames up to the last pass, and the noisy frames of all passes."""
    torch.manual_seed(0)
    clean = torch.randn(BATCH, passes[-1].start + RELEASED.block, 16, *CELLS)
    return clean, torch.randn(BATCH, sum(each.frames for each in passes), 16, *CELLS)


@pytest.mark.parametrize(("config", "switches", "passes"), VIDEOS, ids=str)
@torch.no_grad()
def test_law_teacher_forcing_equals_the_cache(config, switches, passes):
    clean, noisy = draw_latents(passes)
    prompts = [torch.randn(BATCH, ROWS, tiny.TEXT_DIM) for _ in switches]
    plan = plan_teacher_forcing(config, switches, passes, LAYERS)
    given = predict_forced(plan, passes, clean, noisy, prompts)
    wanted = predict_streamed(config, switches, passes, clean, noisy, prompts)
    torch.testing.assert_close(given, wanted, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_mask_matters():
    passes = list_blocks(range(0, 15, 3))
    clean, noisy = draw_latents(passes)
    prompts = [torch.randn(BATCH, ROWS, tiny.TEXT_DIM)]
    plan = plan_teacher_forcing(RELEASED, [(0, CUT)], passes, LAYERS)
    given = predict_forced(plan, passes, clean, noisy, prompts)
    open_plan = replace(plan, sees=torch.ones_like(plan.sees))
    assert (predict_forced(open_plan, passes, clean, noisy, prompts) - given).abs().max() > 0.1


def test_only_what_a_block_depends_on_is_passed():
    plan = plan_teacher_forcing(RELEASED, [(0, CUT), (12, RECACHE)], list_blocks([12]), LAYERS)
    assert [(group.frame, group.segment) for group in plan.clean] == [(frame, 1) for frame in range(12)]
    assert [group.frame for group in plan.noisy] == [12, 13, 14]


def test_a_gap_moves_what_follows_the_sink():
    plan = plan_teacher_forcing(RELEASED, [(0, CUT)], list_blocks(range(0, 6, 3)), LAYERS, gap=30)
    assert [group.position for group in plan.groups] == [0, 1, 2, 0, 1, 2, 33, 34, 35]
