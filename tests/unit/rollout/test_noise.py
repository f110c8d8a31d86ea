"""Noise is counted: seed, block and step determine it, and nothing else is read or changed."""

import random

import numpy as np
import pytest
import torch

from longlive.rollout.noise import seed_noise

SHAPE = (1, 3, 16, 4, 6)


def draw_noise(seed: int, block: int, step: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return seed_noise(seed, SHAPE, dtype)(block, step)


def test_noise_is_the_same_whatever_was_asked_before():
    ordered = seed_noise(7, SHAPE, torch.float32)
    in_order = {(block, step): ordered(block, step) for block in range(4) for step in range(4)}
    for (block, step), noise in reversed(in_order.items()):
        assert torch.equal(draw_noise(7, block, step), noise)


def test_noise_reads_no_global_random_state():
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        found.append(draw_noise(7, 3, 2))
    assert torch.equal(*found)


def test_noise_changes_no_global_random_state():
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()
    draw_noise(7, 3, 2)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), before[1], strict=True))
    assert random.getstate() == before[2]


def test_noise_is_the_same_in_every_process_and_release():
    """Golden numbers: they change only together with the session's KEY_VERSION."""
    golden = torch.tensor([-0.034942835569381714, -0.7249229550361633, 1.268039345741272])
    assert torch.equal(draw_noise(2**64 - 1, 5, 1).flatten()[:3], golden)


def test_seed_block_and_step_each_give_other_noise():
    seeds = (0, 1, 2, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 2, 2**64 - 1)
    starts = {
        tuple(draw_noise(seed, block, step).flatten()[:4].tolist())
        for seed in seeds
        for block in (0, 1, 2, 1000, 2**33)
        for step in range(4)
    }
    assert len(starts) == len(seeds) * 5 * 4


def test_neighbouring_noises_share_no_numbers():
    """A counter that ran on into the next block's would repeat a tail of one as the head of another."""
    neighbours = [draw_noise(0, block, step).flatten() for block in range(3) for step in range(3)]
    everything = torch.cat(neighbours)
    assert len(everything.unique()) > 0.999 * len(everything)
    correlation = torch.corrcoef(torch.stack(neighbours)) - torch.eye(len(neighbours))
    assert correlation.abs().max() < 0.15


def test_noise_is_standard_normal():
    noise = torch.stack([draw_noise(3, block, step) for block in range(40) for step in range(4)])
    assert abs(noise.mean().item()) < 0.01
    assert noise.var().item() == pytest.approx(1, abs=0.01)
    assert noise.pow(4).mean().item() == pytest.approx(3, abs=0.1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_noise_of_another_dtype_is_the_same_noise_rounded(dtype):
    noise = draw_noise(1, 2, 3, dtype)
    assert noise.dtype is dtype
    assert noise.shape == SHAPE
    assert torch.equal(noise, draw_noise(1, 2, 3).to(dtype))
