"""`python -m longlive.miniature.training`: make the miniature's weights anew; stopped at any moment, it goes on.

Needs two cores, three gigabytes and an hour and a half. Curves (`*.jsonl`) and pictures (`*.png`) lie in the folder,
beside what it resumes from.
"""

import argparse
import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch

from ...config import RolloutConfig, pixel_frames
from ...errors import LongLiveError
from ...model.causal import CausalWan
from ...model.vae import WanVAE, decode, encode
from ...model.vae_file import load_vae
from ...timeline import Boundary
from ..files import DIT, TEACHER, VAE, Miniature
from ..stage import Stage, Take
from ..text import MiniatureText
from ..world import render
from . import export
from .bank import Pattern, film_of, opened
from .dit import PLAN, DitRecipe, DitTraining
from .strip import save_strip
from .teacher import TeacherRecipe, TeacherTraining, clips_of
from .trainer import RECIPE, made_with, train
from .vae import VaeRecipe, VaeTraining, decoded, encoded, psnr

log = logging.getLogger(__name__)

HELD_OUT: Pattern = (5, 11)  # latents at which the films of a test switch; no film that is learnt from does
RecipeT = TypeVar("RecipeT", VaeRecipe, DitRecipe, TeacherRecipe)
MEASURED = 64  # films that the latents' statistics are taken from


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    torch.set_num_threads(max(1, options.threads))
    try:
        make(options.folder, options.scale)
    except LongLiveError as error:
        log.error("%s: %s", type(error).__name__, error)
        return 1
    except KeyboardInterrupt:
        log.warning("interrupted: the same command goes on from here")
        return 130
    return 0


def make(folder: Path, scale: float) -> None:
    """Make the files in `folder`, whatever of them is not there yet."""
    vae_file, dit_file, teacher_file = (folder / file.name for file in (VAE, DIT, TEACHER))

    vae_recipe, dit_recipe, teacher_recipe = (
        scaled(VaeRecipe(), scale),
        scaled(DitRecipe(), scale),
        scaled(TeacherRecipe(), scale),
    )
    for file, recipe in ((vae_file, vae_recipe), (dit_file, dit_recipe), (teacher_file, teacher_recipe)):
        made_with(file, recipe)

    if not vae_file.exists():
        of_vae = VaeTraining(vae_recipe)
        train(of_vae, folder, "vae", look=lambda: look_at_vae(of_vae.vae, folder))
        export.fold(of_vae.vae, *statistics(of_vae.vae))
        export.save(of_vae.vae, vae_file, about(of_vae.recipe))
    vae = load_vae(vae_file, dtype=torch.float32)
    figures = quality(vae)
    log.info("VAE on films it has not seen: %.1f dB, the thing %.1f dB", *figures)
    if not dit_file.exists():
        bank = opened(folder / "films.safetensors", vae, scaled_plan(scale))
        of_dit = DitTraining(dit_recipe, bank)
        train(of_dit, folder, "dit", look=lambda: look_at_dit(of_dit.wan, vae, folder))
        export.save(of_dit.model, dit_file, about(of_dit.recipe))
    if not teacher_file.exists():
        clips = clips_of(folder / "clips.safetensors", vae, scale)
        of_teacher = TeacherTraining(teacher_recipe, clips, dit_file)
        train(of_teacher, folder, "teacher")
        export.save(of_teacher.model, teacher_file, about(of_teacher.recipe))


def parser() -> argparse.ArgumentParser:
    formatter = argparse.ArgumentDefaultsHelpFormatter
    top = argparse.ArgumentParser(
        prog="python -m longlive.miniature.training", description=__doc__, formatter_class=formatter
    )
    top.add_argument("--folder", type=Path, default=Path(".cache/miniature"), help="where the training goes on from")
    top.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the CPU")
    top.add_argument("--scale", type=float, default=1.0, help="of all steps and films; 0.05 is a trial of minutes")
    return top


def scaled(recipe: RecipeT, scale: float) -> RecipeT:
    """The recipe with another number of steps."""
    return replace(recipe, steps=max(1, round(recipe.steps * scale)))


def scaled_plan(scale: float) -> dict[Pattern, tuple[int, int]]:
    fewest = DitRecipe().batch
    return {pattern: (max(fewest, round(count * min(1.0, scale))), frames) for pattern, (count, frames) in PLAN.items()}


def about(recipe: VaeRecipe | DitRecipe | TeacherRecipe) -> dict[str, str]:
    return {"format": "pt", RECIPE: str(recipe)}


@torch.no_grad()
def statistics(vae: WanVAE) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation [C] of the raw latents of films."""
    found = []
    for number in range(MEASURED):
        pixels, _ = render([film_of((6,), number)], pixel_frames(15))
        found.append(encoded(vae, pixels.transpose(1, 2)).float().transpose(0, 1).flatten(1))
    latents = torch.cat(found, dim=1)
    return latents.mean(1), latents.std(1)


def quality(vae: WanVAE, count: int = 8) -> tuple[float, float]:
    """PSNR in dB on films the VAE has not seen, streamed: of all pixels, and of those the thing covers."""
    errors, weights = [], []
    for number in range(count):
        pixels, alpha = render([film_of(HELD_OUT, number)], pixel_frames(15))
        errors.append(decode(vae, encode(vae, pixels)) - pixels)
        weights.append((alpha > 0.5).unsqueeze(2).expand_as(pixels))
    error, thing = torch.cat(errors), torch.cat(weights)
    return psnr(error), psnr(error[thing])


def look_at_vae(vae: WanVAE, folder: Path) -> None:
    """A picture of films above what the VAE makes of them."""
    pixels, _ = render([film_of(HELD_OUT, number) for number in range(3)], pixel_frames(15))
    with torch.no_grad():
        made = decoded(vae, encoded(vae, pixels.transpose(1, 2))).transpose(1, 2)
    save_strip([*pixels, *made], folder / "vae.png", every=5)


def look_at_dit(model: CausalWan, vae: WanVAE, folder: Path) -> None:
    """A picture of stories as the network tells them from their prompts alone."""
    rows = []
    for number in range(4):
        with Stage(Miniature(model, vae, MiniatureText()), done=lambda: None) as stage:
            first, *later = (scene for _, scene in film_of((6, 12), number).scenes)
            take = stage.longer(Take(stage.begun(first, number, RolloutConfig())), 6)
            for scene in later:
                take = stage.switched(take, scene, Boundary.RECACHE, 6)
        rows.append(take.pixels_FCHW)
    save_strip(rows, folder / "dit.png", every=5)


if __name__ == "__main__":
    sys.exit(main())
