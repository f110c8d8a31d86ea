"""Noise that names a sky is still standard normal noise."""

import math

import torch

from longlive.miniature.clips import choose_sky, seed_random
from longlive.miniature.training.coupling import TINT_CHANNEL, couple_noise
from longlive.miniature.world import WAVES, Sky

SHAPE = (3, 16, 8, 8)
COUNT = 4000


def draw_noise(count: int) -> torch.Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(0))


def test_law_over_all_skies_the_noise_stays_standard_normal():
    skies = [choose_sky(seed_random("coupled", n)) for n in range(COUNT)]
    coupled = couple_noise(draw_noise(COUNT), skies)[:, :, : TINT_CHANNEL + 1]
    assert coupled.mean((0, 1)).abs().amax() < 5 / math.sqrt(3 * COUNT)
    assert (coupled.std((0, 1)) - 1).abs().amax() < 5 / math.sqrt(6 * COUNT)
    plain = coupled.permute(0, 2, 1, 3, 4).flatten(2)[:, :, ::13]  # some numbers of each channel
    correlation = torch.corrcoef(plain.flatten(1).T)
    apart = correlation - torch.eye(len(correlation))
    assert apart.abs().amax() < 5.5 / math.sqrt(COUNT)


def measure_phase(noise_FHW: torch.Tensor, turns_x: int, turns_y: int) -> float:
    """Measure the phase of the wave that all frames have together, in turns."""
    spectrum = torch.fft.fft2(noise_FHW.sum(0))
    return (spectrum[turns_y, turns_x].angle() / (2 * math.pi)).item() % 1


def test_a_noise_has_the_phases_and_the_tint_of_its_sky():
    sky = Sky((0.1, 0.35, 0.6, 0.85), 0.5)
    noise = draw_noise(2)
    coupled = couple_noise(noise, [sky, sky])
    for channel, (turns_x, turns_y, _) in enumerate(WAVES):
        for video in coupled:
            assert abs(measure_phase(video[:, channel], turns_x, turns_y) - sky.phases[channel]) < 1e-4
    assert coupled[:, :, TINT_CHANNEL].mean((1, 2, 3)).abs().amax() < 1e-6
    darker = couple_noise(noise, [Sky(sky.phases, 0.1)] * 2)[:, :, TINT_CHANNEL].mean((1, 2, 3))
    assert (darker < -0.05).all()


def test_only_what_names_the_sky_changes():
    noise = draw_noise(2)
    coupled = couple_noise(noise, [Sky((0.1, 0.2, 0.3, 0.4), 0.0), Sky((0.1, 0.2, 0.3, 0.4), 1.0)])
    assert torch.equal(coupled[:, :, TINT_CHANNEL + 1 :], noise[:, :, TINT_CHANNEL + 1 :])
    assert coupled.isfinite().all()
    amplitudes, wanted = (torch.fft.fft2(each[:, :, 0].sum(1)).abs() for each in (coupled, noise))
    torch.testing.assert_close(amplitudes, wanted, atol=1e-3, rtol=1e-3)
