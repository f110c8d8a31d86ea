"""`python -m longlive.miniature.training`: train the miniature from nothing; if stopped, run it again to continue.

It needs two cores, four gigabytes and three hours; `--rolling` an hour more. The folder holds metrics (`*.jsonl`),
pictures (`*.png`) and the checkpoints it resumes from.
"""

import argparse
import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch

from ...config import RolloutConfig
from ...errors import LongLiveError
from ...model.causal import CausalWan
from ...model.vae import WanVAE
from ...model.vae_streams import decode, encode
from ...session.boundary import Boundary
from ...units import count_pixel_frames
from ...weights.load import load_model
from ...weights.load_vae import load_vae
from ..evaluation.measure import observe
from ..evaluation.video_sampler import VideoSampler
from ..files import DIT, ROLLING_LORA, TEACHER, VAE, Miniature
from ..text import MiniatureText
from ..world import FADE, render_clips
from . import export
from .bank import BankPlan, Pattern, make_clip, open_bank
from .dit import DitRecipe, DitTraining
from .lessons import BANK_PLAN, UNSEEN_PLAN
from .rolling import OPENINGS_PLAN, ROLLING_PLAN, RollingRecipe, RollingTraining
from .streams import CONTROL, StreamRecipe, StreamTraining
from .strip import save_strip
from .teacher import TeacherRecipe, TeacherTraining, open_teacher_clips
from .trainer import RECIPE, check_recipe, train
from .vae import VaeRecipe, VaeTraining, decode_whole, encode_whole, measure_psnr

log = logging.getLogger(__name__)

HELD_OUT: Pattern = (5, 11)  # latents at which test clips switch; no training clip does
CONTROL_NAME = "longlive_miniature_control.safetensors"
ScaledRecipeT = TypeVar("ScaledRecipeT", VaeRecipe, DitRecipe, StreamRecipe, TeacherRecipe, RollingRecipe)
ADAPTER_SIZE = 3_800_000  # numbers; 7.6 MB
NUM_MEASURED = 64  # clips, for the statistics of the latents


def main(arguments: list[str] | None = None) -> int:
    options = make_parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    torch.set_num_threads(max(1, options.threads))
    try:
        train_miniature(options.folder, options.scale, control=options.control)
        if options.rolling:
            train_rolling(options.folder, options.scale)
    except LongLiveError as error:
        log.error("%s: %s", type(error).__name__, error)
        return 1
    except KeyboardInterrupt:
        log.warning("interrupted; run the same command to continue")
        return 130
    return 0


def train_miniature(folder: Path, scale: float, *, control: bool) -> None:
    """Train the weights files that `folder` does not hold yet; of the control instead of the streams, if asked."""
    vae_file, teacher_file = folder / VAE.name, folder / TEACHER.name
    dit_file = folder / (CONTROL_NAME if control else DIT.name)
    stream_recipe = scale_steps(CONTROL if control else StreamRecipe(), scale)
    vae_recipe, teacher_recipe = scale_steps(VaeRecipe(), scale), scale_steps(TeacherRecipe(), scale)
    for file, recipe in ((vae_file, vae_recipe), (dit_file, stream_recipe), (teacher_file, teacher_recipe)):
        check_recipe(file, recipe)

    if not vae_file.exists():
        vae_training = VaeTraining(vae_recipe)
        train(vae_training, folder, "vae", on_save=lambda: save_vae_strip(vae_training.vae, folder))
        export.fold_statistics(vae_training.vae, *measure_statistics(vae_training.vae))
        export.save_weights(vae_training.vae, vae_file, describe_recipe(vae_recipe))
    vae = load_vae(vae_file, dtype=torch.float32)
    log.info("VAE on clips it has not seen: %.1f dB, the thing %.1f dB, likeness %.3f", *measure_quality(vae))
    if not dit_file.exists():
        train_network(folder, vae, scale, stream_recipe, dit_file)
    if not control and not teacher_file.exists():
        clips = open_teacher_clips(folder / "clips", vae, scale)
        teacher_training = TeacherTraining(teacher_recipe, clips, dit_file)
        train(teacher_training, folder, "teacher")
        export.save_weights(teacher_training.model, teacher_file, describe_recipe(teacher_recipe))


def train_network(folder: Path, vae: WanVAE, scale: float, recipe: StreamRecipe, file: Path) -> None:
    """Train the network on clips, then by another recipe, and write its weights."""
    bank = open_bank(folder / "films", vae, scale_bank_plan(BANK_PLAN, scale))
    unseen = open_bank(folder / "films", vae, UNSEEN_PLAN, kind="unseen")
    dit_training = DitTraining(scale_steps(DitRecipe(), scale), bank, unseen)
    train(dit_training, folder, "dit", on_save=lambda: save_dit_strip(dit_training.wan, vae, folder))
    training = StreamTraining(recipe, dit_training.model, bank, unseen)
    name = "streams" if recipe.has_streams else "control"
    train(training, folder, name, on_save=lambda: save_dit_strip(training.wan, vae, folder))
    export.save_weights(training.model, file, describe_recipe(recipe))


def train_rolling(folder: Path, scale: float) -> None:
    """Train the network in the rolling kind behind `train_miniature`, and write what changed as an adapter."""
    file, recipe = folder / ROLLING_LORA.name, scale_steps(RollingRecipe(), scale)
    check_recipe(file, recipe)
    if file.exists():
        return
    vae = load_vae(folder / VAE.name)
    films = folder / "films"
    training = RollingTraining(
        recipe,
        load_model(folder / DIT.name, dtype=torch.float32)[0],
        open_bank(films, vae, scale_bank_plan(ROLLING_PLAN, scale)),
        open_bank(films, vae, UNSEEN_PLAN, kind="unseen"),
        open_bank(films, vae, scale_bank_plan(OPENINGS_PLAN, scale), kind="opening"),
    )
    before = {name: weight.clone() for name, weight in training.model.state_dict().items()}
    train(training, folder, "rolling")
    left = export.save_adapter(before, training.model.state_dict(), ADAPTER_SIZE, file, describe_recipe(recipe))
    log.info("rolling: the adapter leaves out %.1f %% of the change", 100 * left)


def make_parser() -> argparse.ArgumentParser:
    formatter = argparse.ArgumentDefaultsHelpFormatter
    top = argparse.ArgumentParser(
        prog="python -m longlive.miniature.training", description=__doc__, formatter_class=formatter
    )
    top.add_argument(
        "--folder",
        type=Path,
        default=Path(".cache/miniature"),
        help="folder of the training; it continues from what is there",
    )
    top.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    top.add_argument("--scale", type=float, default=1.0, help="factor for all steps and clips; 0.05 takes minutes")
    top.add_argument("--rolling", action="store_true", help="then train an adapter for the rolling kind")
    top.add_argument("--control", action="store_true", help="continue the network without streams, to compare")
    return top


def scale_steps(recipe: ScaledRecipeT, scale: float) -> ScaledRecipeT:
    """Scale the number of steps of a recipe."""
    return replace(recipe, steps=max(1, round(recipe.steps * scale)))


def scale_bank_plan(plan: BankPlan, scale: float) -> BankPlan:
    fewest = DitRecipe().batch
    return {pattern: (max(fewest, round(count * min(1.0, scale))), frames) for pattern, (count, frames) in plan.items()}


def describe_recipe(recipe: VaeRecipe | StreamRecipe | TeacherRecipe | RollingRecipe) -> dict[str, str]:
    return {"format": "pt", RECIPE: str(recipe)}


@torch.no_grad()
def measure_statistics(vae: WanVAE) -> tuple[torch.Tensor, torch.Tensor]:
    """Measure mean and deviation [C] of the raw latents of clips."""
    found = []
    for number in range(NUM_MEASURED):
        pixels, _ = render_clips([make_clip((6,), number)], count_pixel_frames(15))
        found.append(encode_whole(vae, pixels.transpose(1, 2)).float().transpose(0, 1).flatten(1))
    latents = torch.cat(found, dim=1)
    return latents.mean(1), latents.std(1)


def measure_quality(vae: WanVAE, count: int = 8) -> tuple[float, float, float]:
    """Measure the streamed VAE on unseen clips.

    Returns the PSNR in dB of all pixels and of those that the thing covers, and the thing's likeness to its shape where
    nothing fades.
    """
    errors, weights, likenesses = [], [], []
    for number in range(count):
        clip = make_clip(HELD_OUT, number)
        pixels, alpha = render_clips([clip], count_pixel_frames(15))
        decoded = decode(vae, encode(vae, pixels))
        errors.append(decoded - pixels)
        fading = [frame for begin, _ in clip.scenes[1:] for frame in range(begin, begin + FADE)]
        is_settled = ~torch.isin(torch.arange(pixels.shape[1]), torch.tensor(fading))
        likenesses.append(observe(decoded[0]).likeness_F[is_settled])
        weights.append((alpha > 0.5).unsqueeze(2).expand_as(pixels))
    error, thing = torch.cat(errors), torch.cat(weights)
    return measure_psnr(error), measure_psnr(error[thing]), torch.cat(likenesses).mean().item()


def save_vae_strip(vae: WanVAE, folder: Path) -> None:
    """Save a picture of clips, and below them what the VAE makes of them."""
    pixels, _ = render_clips([make_clip(HELD_OUT, number) for number in range(3)], count_pixel_frames(15))
    with torch.no_grad():
        made = decode_whole(vae, encode_whole(vae, pixels.transpose(1, 2))).transpose(1, 2)
    save_strip([*pixels, *made], folder / "vae.png", every=5)


def save_dit_strip(model: CausalWan, vae: WanVAE, folder: Path) -> None:
    """Save a picture of videos that the network samples from prompts alone."""
    rows = []
    for number in range(4):
        with VideoSampler(Miniature(model, vae, MiniatureText())) as sampler:
            first, *later = (scene for _, scene in make_clip((6, 12), number).scenes)
            video = sampler.start_video(first, number, RolloutConfig(), 6)
            for scene in later:
                video = sampler.switch_video(video, scene, Boundary.RECACHE, 6)
        rows.append(video.pixels_FCHW)
    save_strip(rows, folder / "dit.png", every=5)


if __name__ == "__main__":
    sys.exit(main())
