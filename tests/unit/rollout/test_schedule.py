"""The flow-matching table, the warped steps, and the three conversions between noisy, clean and flow."""

import pytest
import torch

from longlive.config import MAX_STEP, RolloutConfig
from longlive.rollout.schedule import Schedule, add_noise, convert_clean_to_flow, convert_flow_to_clean


def test_the_released_steps_bend_to_the_released_times():
    times = Schedule(5.0).warp((1000, 750, 500, 250))
    torch.testing.assert_close(times, torch.tensor([1000, 937.5, 2500 / 3, 625]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("shift", [0.3, 1.0, 5.0, 8.0])
def test_the_table_falls_from_one_and_never_reaches_zero(shift):
    sigmas = Schedule(shift).sigmas
    assert len(sigmas) == MAX_STEP
    assert sigmas[0] == 1
    assert sigmas[-1] > 0
    assert (sigmas.diff() < 0).all()


@pytest.mark.parametrize("shift", [0.3, 1.0, 5.0, 8.0])
def test_the_table_is_bent_by_the_shift(shift):
    plain = torch.arange(MAX_STEP, 0, -1, dtype=torch.float64) / MAX_STEP
    bent = shift * plain / (1 + (shift - 1) * plain)
    torch.testing.assert_close(Schedule(shift).sigmas.double(), bent, rtol=0, atol=1e-6)


def test_a_shift_of_one_bends_nothing():
    steps = RolloutConfig().steps
    torch.testing.assert_close(Schedule(1.0).warp(steps), torch.tensor(steps).float(), rtol=0, atol=1e-4)


def test_sigma_is_the_entry_nearest_in_time_in_any_shape():
    schedule = Schedule(5.0)
    torch.testing.assert_close(schedule.sigma(schedule.timesteps.view(10, 100)), schedule.sigmas.view(10, 100))
    between = schedule.timesteps[300] * 0.6 + schedule.timesteps[301] * 0.4
    assert schedule.sigma(between) == schedule.sigmas[300]


def test_there_is_no_sigma_of_zero():
    """The reference has no entry for it either: the clean pass is counted at the last one."""
    schedule = Schedule(5.0)
    assert schedule.sigma(torch.tensor(0.0)) == schedule.sigmas[-1]
    assert float(schedule.sigmas[-1]) == pytest.approx(0.00498, abs=1e-5)


def test_flow_and_clean_are_two_ways_to_say_the_same():
    generator = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(5, 3, 2, generator=generator) for _ in range(2))
    sigma = torch.tensor([0.1, 0.5, 0.625, 0.9, 1.0]).view(5, 1, 1)
    noisy = add_noise(clean, noise, sigma)
    torch.testing.assert_close(convert_clean_to_flow(noisy, clean, sigma), noise - clean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(convert_flow_to_clean(noisy, noise - clean, sigma), clean, rtol=1e-5, atol=1e-5)


def test_full_noise_is_noise_and_none_is_clean():
    clean, noise = torch.randn(2, 3), torch.randn(2, 3)
    assert torch.equal(add_noise(clean, noise, torch.tensor(1.0)), noise)
    assert torch.equal(add_noise(clean, noise, torch.tensor(0.0)), clean)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_conversions_compute_wide_and_answer_in_the_dtype_they_were_given(dtype):
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(64, generator=generator).to(dtype) for _ in range(2))
    sigma = torch.tensor(0.6371)
    expected = {
        add_noise: (1 - sigma.double()) * x.double() + sigma.double() * y.double(),
        convert_flow_to_clean: x.double() - sigma.double() * y.double(),
        convert_clean_to_flow: (x.double() - y.double()) / sigma.double(),
    }
    for convert, wide in expected.items():
        found = convert(x, y, sigma)
        assert found.dtype is dtype
        torch.testing.assert_close(found, wide.to(dtype), rtol=1e-6 if dtype is torch.float32 else 0, atol=1e-7)
