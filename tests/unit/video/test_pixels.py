"""Pixels become bytes without loss beyond the rounding."""

import torch

from longlive.video.pixels import to_bytes


def test_bytes_are_rounded_to_the_nearest():
    levels = torch.arange(256.0)
    for aside in (-0.49, 0.49):
        pixels = ((levels + aside) / 127.5 - 1).view(-1, 1, 1, 1).expand(-1, 3, 1, 1)
        assert to_bytes(pixels)[:, 0, 0, 0].tolist() == levels.tolist()
    assert to_bytes(torch.tensor([-9.0, 9.0]).view(2, 1, 1, 1)).flatten().tolist() == [0, 255]


def test_half_precision_pixels_lose_nothing_more_on_the_way():
    pixels = torch.linspace(-1, 1, 999).bfloat16().view(-1, 1, 1, 1)
    assert torch.equal(to_bytes(pixels), to_bytes(pixels.double()))
