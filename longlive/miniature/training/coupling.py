"""Noise that names a sky: so seeds differ, though a network can only learn the mean of what its input leaves open.

A first block is sampled from noise and a prompt, which says nothing of the sky; the mean of all skies is a grey one.
Here the noise of a lesson is drawn given its clip's sky: over all clips it stays exactly standard normal, but each
noise belongs to one sky.

Dimension key: B clips, F frames, C channels, H rows, W columns.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist

import torch
from torch import Tensor

from ..world import WAVES, Sky

TINT_CHANNEL = len(WAVES)  # each channel before it holds the phase of one wave


def couple_noise(noise_BFCHW: Tensor, skies: Sequence[Sky]) -> Tensor:
    """Turn the wave of each phase in its own channel to the sky's phase, and set the mean of the tint's channel.

    The amplitudes stay as they were drawn. Phases are uniform and tints too, so the result is standard normal.
    """
    coupled_BFCHW = noise_BFCHW.clone()
    for channel, (turns_x, turns_y, _) in enumerate(WAVES):
        phases_B = torch.tensor([sky.phases[channel] for sky in skies])
        coupled_BFCHW[:, :, channel] = turn_wave(noise_BFCHW[:, :, channel], turns_x, turns_y, phases_B)
    tinted_BFHW = noise_BFCHW[:, :, TINT_CHANNEL]
    spread = tinted_BFHW[0].numel() ** -0.5  # of a mean of that many standard normal numbers
    tiny = torch.finfo(torch.float32).eps
    means_B = [NormalDist(0, spread).inv_cdf(min(max(sky.tint, tiny), 1 - tiny)) for sky in skies]
    shift_B = torch.tensor(means_B) - tinted_BFHW.mean((1, 2, 3))
    coupled_BFCHW[:, :, TINT_CHANNEL] = tinted_BFHW + shift_B[:, None, None, None]
    return coupled_BFCHW


def turn_wave(noise_BFHW: Tensor, turns_x: int, turns_y: int, phases_B: Tensor) -> Tensor:
    """Set the phase, in turns, of the wave that noise of all frames has together; its amplitude stays."""
    *_, rows, columns = noise_BFHW.shape
    x, y = torch.arange(columns) / columns, torch.arange(rows) / rows
    angle_HW = 2 * math.pi * (turns_x * x + turns_y * y[:, None])
    cos_HW, sin_HW = angle_HW.cos(), angle_HW.sin()
    scale = 2 / noise_BFHW[0].numel()
    a_B, b_B = ((noise_BFHW * wave_HW).sum((1, 2, 3)) * scale for wave_HW in (cos_HW, sin_HW))
    amplitude_B, turned_B = torch.hypot(a_B, b_B), 2 * math.pi * phases_B
    change_a, change_b = amplitude_B * turned_B.cos() - a_B, -amplitude_B * turned_B.sin() - b_B
    return noise_BFHW + (change_a[:, None, None] * cos_HW + change_b[:, None, None] * sin_HW)[:, None]
