"""The films that the network learns from, as latents of the miniature's VAE."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from ...config import pixel_frames
from ...model.vae import WanVAE, normalised
from ...store import write_atomically
from ..films import numbered, random_film
from ..world import Film, render
from .optimizer import lay_channels_last
from .trainer import RECIPE, made_with
from .vae import encoded

log = logging.getLogger(__name__)

Pattern = tuple[int, ...]
"""The latent frames at which a film's scene changes."""

AT_ONCE = 4  # films encoded together


@dataclass(frozen=True, slots=True)
class Shelf:
    """Films of one pattern, and their latents [N, F, C, H, W] in half precision."""

    films: tuple[Film, ...]
    latents: Tensor


Bank = dict[Pattern, Shelf]


def film_of(pattern: Pattern, number: int) -> Film:
    """Film `number` among those that change at the latents of `pattern`."""
    return random_film(numbered(f"film {pattern}", number), tuple(pixel_frames(latent) for latent in pattern))


def opened(path: Path, vae: WanVAE, plan: dict[Pattern, tuple[int, int]]) -> Bank:
    """The bank in `path`, made if it is not there; `plan` says how many films of how many latents each pattern has."""
    made_with(path, plan)
    latents = load_file(path) if path.exists() else {}
    for pattern, size in plan.items():
        if key(pattern) not in latents:
            latents[key(pattern)] = torch.cat([*_encoded(vae, pattern, *size)])
            write_atomically(path, latents, {RECIPE: str(plan)})
    return {
        pattern: Shelf(tuple(film_of(pattern, number) for number in range(count)), latents[key(pattern)])
        for pattern, (count, _) in plan.items()
    }


def key(pattern: Pattern) -> str:
    """The name of a pattern's films in the file."""
    return f"films{pattern}"


@torch.no_grad()
def _encoded(vae: WanVAE, pattern: Pattern, count: int, frames: int) -> Iterator[Tensor]:
    log.info("encoding %d films of %d latents, changing at %s", count, frames, pattern or "no frame")
    lay_channels_last(vae)
    for first in range(0, count, AT_ONCE):
        films = [film_of(pattern, number) for number in range(first, min(count, first + AT_ONCE))]
        pixels, _ = render(films, pixel_frames(frames))
        with torch.autocast("cpu", torch.bfloat16):
            z_BCTHW = encoded(vae, pixels.transpose(1, 2).contiguous(memory_format=torch.channels_last_3d))
        yield normalised(z_BCTHW.float().transpose(1, 2)).half()
