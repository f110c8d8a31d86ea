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

FRAMES = 24  # latent frames of a clip
FIRST_BLOCKS: Pattern = (FRAMES,)  # clips of which only the first block is trained
LATENTS_AT_ONCE = 96  # encoded together
LATENTS_PER_FILE = 1500  # half a minute of encoding is lost when it is stopped

BankPlan = dict[Pattern, tuple[int, int]]
"""The number of clips of each pattern, and of the latents of each of them."""


@dataclass(frozen=True, slots=True)
class EncodedClips:
    """Clips of one pattern, and their latents [N, F, C, H, W] in half precision."""

    clips: tuple[Clip, ...]
    latents: Tensor


Bank = dict[Pattern, EncodedClips]


def make_clip(pattern: Pattern, number: int, *, kind: str = "film") -> Clip:
    """Make clip `number` of those that change at the latents of `pattern`; `kind` seeds it.

    Only where the first block is trained does the thing start where its prompt says.
    """
    switches = () if pattern == FIRST_BLOCKS else tuple(count_pixel_frames(latent) for latent in pattern)
    return choose_clip(seed_random(f"{kind} {pattern}", number), switches, roam=pattern != FIRST_BLOCKS)


def open_bank(folder: Path, vae: WanVAE, plan: BankPlan, *, kind: str = "film") -> Bank:
    """Load the clips of a plan from `folder`, and encode those it lacks."""
    bank = {}
    for pattern, (count, frames) in plan.items():
        clips = tuple(make_clip(pattern, number, kind=kind) for number in range(count))
        name = f"{kind}-{'-'.join(map(str, pattern)) or 'plain'}"
        bank[pattern] = EncodedClips(clips, open_latents(folder, name, vae, clips, frames))
    return bank


def open_latents(folder: Path, name: str, vae: WanVAE, clips: Sequence[Clip], frames: int) -> Tensor:
    """Load the latents of clips [N, F, C, H, W] from `folder`, and encode what it lacks, some clips a file.

    Raises WeightsError for a file of another number of clips or of frames.
    """
    folder.mkdir(parents=True, exist_ok=True)
    recipe, size, latents = str((len(clips), frames)), LATENTS_PER_FILE // frames, []
    for first in range(0, len(clips), size):
        path = folder / f"{name}-{first}.safetensors"
        check_recipe(path, recipe)
        if not path.exists():
            some = clips[first : first + size]
            log.info("encoding %s: %d to %d of %d clips", name, first, first + len(some), len(clips))
            write_tensor_file(path, {"latents": encode_clips(vae, some, frames)}, {RECIPE: recipe})
        latents.append(load_file(path)["latents"])
    return torch.cat(latents)


@torch.no_grad()
def encode_clips(vae: WanVAE, clips: Sequence[Clip], frames: int) -> Tensor:
    """Encode the first `frames` latents of clips [N, F, C, H, W] in half precision."""
    lay_channels_last(vae)
    latents, at_once = [], max(1, LATENTS_AT_ONCE // frames)
    for first in range(0, len(clips), at_once):
        pixels, _ = render_clips(clips[first : first + at_once], count_pixel_frames(frames))
        with torch.autocast("cpu", torch.bfloat16):
            z_BCTHW = encode_whole(vae, pixels.transpose(1, 2).contiguous(memory_format=torch.channels_last_3d))
        latents.append(normalise(z_BCTHW.float().transpose(1, 2)).half())
    return torch.cat(latents)
