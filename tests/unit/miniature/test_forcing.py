"""Law: teacher forcing under its mask is the streaming rollout, rolled window, moved sink and recache included."""

from dataclasses import replace

import pytest
import tiny
import torch

from longlive.config import Positions, RolloutConfig
from longlive.miniature.training.forcing import ROWS, TeacherForcingPlan, make_mask, plan_teacher_forcing, predict_flow
from longlive.rollout.rollout import Rollout
from longlive.session.boundary import Boundary

CUT, RECACHE, RENEW, KEEP = Boundary.CUT, Boundary.RECACHE, Boundary.RENEW, Boundary.KEEP
RELEASED, UNBOUNDED = RolloutConfig(), RolloutConfig(positions=Positions.UNBOUNDED)
NO_SINK, LONG = RolloutConfig(sink=0), RolloutConfig(window=21, sink=0)
BATCH, CELLS, TIMESTEP = 2, (4, 2), 700.0
MODEL = tiny.model(replace(tiny.GEOMETRY, text_len=40))
LAYERS = MODEL.geometry.num_layers

VIDEOS = [  # settings, switches, starts of the blocks to train
    (config, switches, starts)
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
] + [(NO_SINK, [(0, CUT), (15, RECACHE)], range(15, 24, 3)), (LONG, [(0, CUT)], range(0, 30, 3))]


def predict_streamed(config, switches, starts, clean, noisy, prompts) -> dict[int, torch.Tensor]:
    """Predict the flow of the blocks at `starts` with the rollout's own KV cache."""
    texts = [MODEL.read_prompt(prompt) for prompt in prompts]
    rollout, found, segment = Rollout(MODEL, config, (BATCH, 16, *CELLS)), {}, 0
    boundaries = dict(switches)
    for start in range(0, max(starts) + 1, config.block):
        if start and start in boundaries:
            segment += 1
            if boundaries[start] is not KEEP:
                rollout.recache(start, clean[:, :start], texts[segment], renew=boundaries[start] is RENEW)
        block = slice(start, start + config.block)
        if start in starts:
            place = rollout.window.place_block(start, config.block)
            found[start] = rollout._pass(noisy[:, block], (TIMESTEP,), texts[segment], place)
        rollout.clean_pass(start, clean[:, block], texts[segment])
    return found


def predict_forced(plan: TeacherForcingPlan, clean, noisy, prompts) -> torch.Tensor:
    latents = torch.cat([clean[:, [g.frame for g in plan.clean]], noisy[:, [g.frame for g in plan.noisy]]], dim=1)
    times = torch.tensor([[0.0] * len(plan.clean) + [TIMESTEP] * len(plan.noisy)]).expand(BATCH, -1)
    geometry = MODEL.geometry
    mask = make_mask(plan, geometry.grid(*CELLS), geometry.head_dim, geometry.text_len)
    return predict_flow(MODEL, plan, mask, latents, times, torch.cat(prompts, dim=1))


@pytest.mark.parametrize(("config", "switches", "starts"), VIDEOS, ids=str)
@torch.no_grad()
def test_law_teacher_forcing_equals_the_cache(config, switches, starts):
    torch.manual_seed(0)
    clean, noisy = torch.randn(2, BATCH, max(starts) + config.block, 16, *CELLS)
    prompts = [torch.randn(BATCH, ROWS, tiny.TEXT_DIM) for _ in switches]
    plan = plan_teacher_forcing(config, switches, starts, LAYERS)
    given = predict_forced(plan, clean, noisy, prompts)
    for start, wanted in predict_streamed(config, switches, starts, clean, noisy, prompts).items():
        at = [n for n, group in enumerate(plan.noisy) if start <= group.frame < start + config.block]
        torch.testing.assert_close(given[:, at], wanted, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_mask_matters():
    torch.manual_seed(0)
    clean, noisy = torch.randn(2, BATCH, 15, 16, *CELLS)
    prompts = [torch.randn(BATCH, ROWS, tiny.TEXT_DIM)]
    plan = plan_teacher_forcing(RELEASED, [(0, CUT)], range(0, 15, 3), LAYERS)
    given = predict_forced(plan, clean, noisy, prompts)
    open_plan = replace(plan, sees=torch.ones_like(plan.sees))
    assert (predict_forced(open_plan, clean, noisy, prompts) - given).abs().max() > 0.1


def test_only_what_a_block_depends_on_is_passed():
    plan = plan_teacher_forcing(RELEASED, [(0, CUT), (12, RECACHE)], [12], LAYERS)
    assert [(group.frame, group.segment) for group in plan.clean] == [(frame, 1) for frame in range(12)]
    assert [group.frame for group in plan.noisy] == [12, 13, 14]


def test_a_gap_moves_what_follows_the_sink():
    plan = plan_teacher_forcing(RELEASED, [(0, CUT)], range(0, 6, 3), LAYERS, gap=30)
    assert [group.position for group in plan.groups] == [0, 1, 2, 0, 1, 2, 33, 34, 35]
