"""The training in the rolling kind: its joint passes are those of rolling videos, and its result is an adapter."""

import random

import torch

from longlive.miniature.files import DIT, load_miniature
from longlive.miniature.training.export import save_adapter
from longlive.miniature.training.forcing import NoisyPass
from longlive.miniature.training.joint_passes import KINDS, LEVELS, JointPass
from longlive.miniature.training.lessons import BLOCK
from longlive.session.in_flight import InFlight, plan_joint_step
from longlive.weights.load import load_model

CHANGED = "blocks.1.ffn.0.weight"


def list_joint_passes(blocks: int) -> set[JointPass]:
    """List the joint passes of a video of so many blocks, by the steps of its session."""
    found, start, flight = set(), 0, None
    while start < blocks:
        begun = start + (len(flight.blocks) if flight else 0)
        step = plan_joint_step(flight, LEVELS, grows=begun < blocks)
        found.add(JointPass(NoisyPass(start * BLOCK, step.count * BLOCK), step.level))
        left = (torch.empty(0),) * step.left
        flight = InFlight(left, step.level_after, "") if left else None
        start += step.finishes
    return found


def test_trained_passes_are_those_of_rolling_videos():
    of_videos = set().union(*(list_joint_passes(blocks) for blocks in range(LEVELS, 20)))
    for _, choose in KINDS:
        draw = random.Random(0)
        for _ in range(20):
            passes = choose(draw)
            assert set(passes) <= of_videos
            starts = [each.noisy.start for each in passes]
            assert starts == sorted(starts)


def test_the_levels_of_a_pass_rise_by_block_towards_noise():
    assert JointPass(NoisyPass(6, 9), 4).levels == [4, 4, 4, 3, 3, 3, 2, 2, 2]


def test_an_adapter_holds_what_changed(tmp_path):
    before = load_model(DIT, dtype=torch.float32)[0].state_dict()
    low_rank = torch.randn(1024, 4) @ torch.randn(4, 256) / 100
    after = {**before, CHANGED: before[CHANGED] + low_rank}
    size = 4 * (1024 + 256)
    assert save_adapter(before, after, size, tmp_path / "adapter.safetensors", {"format": "pt"}) < 1e-3
    found = dict(load_miniature(lora=tmp_path / "adapter.safetensors").model.tree.named_parameters())
    torch.testing.assert_close(found[CHANGED], after[CHANGED], atol=1e-3, rtol=1e-2)
    assert all(torch.equal(found[name], before[name]) for name in before if name != CHANGED)
    assert save_adapter(before, after, size // 2, tmp_path / "less.safetensors", {"format": "pt"}) > 0.3
