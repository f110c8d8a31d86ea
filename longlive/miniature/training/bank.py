"""The clips that the network is trained on, as latents of the miniature's VAE."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from ...model.vae import WanVAE, normalise
from ...units import count_pixel_frames
from ...weights.tensor_file import write_tensor_file
from ..clips import choose_clip, seed_random
from ..world import Clip, render_clips
from .optimizer import lay_channels_last
from .trainer import RECIPE, check_recipe
from .vae import encode_whole

log = logging.getLogger(__name__)

Pattern = tuple[int, ...]
"""The latent frames at which a clip's scene changes."""

CLIPS_PER_BATCH = 4  # encoded together


@dataclass(frozen=True, slots=True)
class EncodedClips:
    """Clips of one pattern, and their latents [N, F, C, H, W] in half precision."""

    clips: tuple[Clip, ...]
    latents: Tensor


Bank = dict[Pattern, EncodedClips]


def make_clip(pattern: Pattern, number: int) -> Clip:
    """Make clip `number` of those that change at the latents of `pattern`."""
    return choose_clip(seed_random(f"film {pattern}", number), tuple(count_pixel_frames(latent) for latent in pattern))


def open_bank(path: Path, vae: WanVAE, plan: dict[Pattern, tuple[int, int]]) -> Bank:
    """Load the bank in `path` and encode what it lacks; `plan` gives each pattern a number of clips and of latents."""
    check_recipe(path, plan)
    latents = load_file(path) if path.exists() else {}
    bank = {}
    for pattern, (count, frames) in plan.items():
        clips = tuple(make_clip(pattern, number) for number in range(count))
        name = f"films{pattern}"
        if name not in latents:
            log.info("encoding %d clips of %d latents, changing at %s", count, frames, pattern or "no frame")
            latents[name] = encode_clips(vae, clips, frames)
            write_tensor_file(path, latents, {RECIPE: str(plan)})
        bank[pattern] = EncodedClips(clips, latents[name])
    return bank


@torch.no_grad()
def encode_clips(
    vae: WanVAE, clips: Sequence[Clip], frames: int, shifts: Sequence[tuple[int, int]] | None = None
) -> Tensor:
    """Encode the first `frames` latents of clips [N, F, C, H, W] in half precision.

    `shifts` roll the pixels of each clip by (rows, columns).
    """
    lay_channels_last(vae)
    latents = []
    for first in range(0, len(clips), CLIPS_PER_BATCH):
        batch = slice(first, first + CLIPS_PER_BATCH)
        pixels, _ = render_clips(clips[batch], count_pixel_frames(frames))
        if shifts:
            rolled = [clip.roll(shift, (-2, -1)) for clip, shift in zip(pixels, shifts[batch], strict=True)]
            pixels = torch.stack(rolled)
        with torch.autocast("cpu", torch.bfloat16):
            z_BCTHW = encode_whole(vae, pixels.transpose(1, 2).contiguous(memory_format=torch.channels_last_3d))
        latents.append(normalise(z_BCTHW.float().transpose(1, 2)).half())
    return torch.cat(latents)
