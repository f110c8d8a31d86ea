"""Pixel frames: converted to bytes, enlarged for the eye, and drawn from latents in colours that stand for channels."""

import torch
from torch import Tensor
from torch.nn.functional import interpolate

CELL_PIXELS = 4  # of a latent's picture; a decoded cell has 8


def to_bytes(pixels: Tensor) -> Tensor:
    """Turn pixels [F 3 H W] or [1 F 3 H W], -1..1, into bytes [F H W 3] on their device: bytes are faster to copy.

    Rounds to the nearest of 0..255; the reference truncates, which darkens by half a step on average.
    Raises ValueError for a batch of videos.
    """
    if pixels.ndim == 5:
        if pixels.shape[0] != 1:
            raise ValueError(f"a file holds one video, but the batch holds {pixels.shape[0]}")
        pixels = pixels[0]
    scaled_FCHW = pixels.float().mul(127.5).add_(127.5).round_().clamp_(0, 255)
    return scaled_FCHW.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def enlarge(pixels_BFCHW: Tensor, times: int) -> Tensor:
    """Enlarge pixels to look at, with bicubic interpolation."""
    if times == 1 or not pixels_BFCHW.shape[1]:
        return pixels_BFCHW
    frames = interpolate(pixels_BFCHW.flatten(0, 1), scale_factor=times, mode="bicubic").clamp(-1, 1)
    return frames.unflatten(0, pixels_BFCHW.shape[:2])


def colour_latents(latents_BFCHW: Tensor, factors: list[list[float]], bias: list[float] | None) -> Tensor:
    """Draw each latent as a picture [1 F 3 H W], -1..1: every channel has a colour, every cell a square of pixels."""
    colours_CR = torch.tensor(factors)
    pixels_BFRHW = torch.einsum("bfchw,cr->bfrhw", latents_BFCHW.float(), colours_CR)
    pixels_BFRHW += torch.tensor(bias or [0.0] * 3).view(-1, 1, 1)
    return pixels_BFRHW.repeat_interleave(CELL_PIXELS, -1).repeat_interleave(CELL_PIXELS, -2)
