"""The miniature's teacher: a network that denoises whole clips, for streaming long tuning (`longlive/tuning/`).

Its training starts from the miniature itself. It learns to see a whole clip at once, from clips that begin, that
continue, and that have just changed their prompt. Some prompts are left out, so that it also works without one.

Dimension key: B clips, F frames, C channels, H and W cells, L rows and D width of a prompt embedding.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ...config import MAX_STEP, RolloutConfig
from ...model.vae import WanVAE
from ...tuning.dmd import ClipNoise, Score
from ...units import count_pixel_frames
from ...weights.load import load_model
from ..clips import choose_clip, seed_random
from ..world import Clip
from .bank import open_latents
from .lessons import embed_prompt
from .network import use_half_precision
from .optimizer import Optimizer, lay_channels_last
from .trainer import ModuleTraining

CLIP_FRAMES = 21
OVERLAP = 3  # frames before the change of prompt, in a clip that has just changed it
CLIP_COUNTS = {"begins": 320, "goes on": 320, "has changed": 192}  # these words seed the clips


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherRecipe:
    """How the teacher is trained."""

    seed: int = 0
    steps: int = 700
    batch: int = 8  # clips per step
    unprompted: float = 0.15  # share of clips without their prompt
    rate: float = 1.2e-3
    warmup: int = 50
    decay: float = 0.6  # the last share of the steps, in which the rate falls to zero


class TeacherClip(NamedTuple):
    """A clip that the teacher is trained on."""

    prompt: str
    clip: Clip


@dataclass(frozen=True, slots=True)
class EncodedTeacherClips:
    """Prompts of clips, and their latents [N, F, C, H, W] in half precision."""

    prompts: tuple[str, ...]
    latents: Tensor


class TeacherTraining(ModuleTraining[TeacherRecipe]):
    """The training of the teacher."""

    def __init__(self, recipe: TeacherRecipe, clips: EncodedTeacherClips, miniature: Path) -> None:
        self.clips = clips
        self.model, _ = load_model(miniature, dtype=torch.float32)
        self.model.requires_grad_(True)
        lay_channels_last(self.model)
        self.score = Score(self.model)
        optimizer = Optimizer(self.model, recipe.rate, of_muon=lambda name: name.startswith("blocks."))
        super().__init__(recipe, {"model": self.model}, optimizer)

    def step(self) -> dict[str, float]:
        """Make one step and return the figures of its batch."""
        recipe = self.recipe
        draw = seed_random(f"teacher {recipe.seed}", self.num_steps)
        noise = torch.Generator().manual_seed(draw.getrandbits(60))
        chosen = draw.sample(range(len(self.clips.prompts)), recipe.batch)
        clean_BFCHW = self.clips.latents[chosen].float()
        clip_noise = ClipNoise.of_index(
            torch.randint(MAX_STEP, (len(chosen),), generator=noise),
            torch.randn(clean_BFCHW.shape, generator=noise),
            RolloutConfig().shift,
        )
        embedding_BLD = torch.stack(
            [embed_prompt("" if draw.random() < recipe.unprompted else self.clips.prompts[i]) for i in chosen]
        )
        with use_half_precision():
            flow = self.score.compute_flow(clip_noise.add_to(clean_BFCHW), clip_noise.timesteps_B, embedding_BLD)
        loss = (flow.float() - (clip_noise.noise_BFCHW - clean_BFCHW)).square().mean()
        loss.backward()
        self.finish_step()
        return {"loss": loss.item()}


def open_teacher_clips(folder: Path, vae: WanVAE, scale: float) -> EncodedTeacherClips:
    """Load the clips from `folder`, and encode those it lacks; `scale` multiplies their number."""
    plan = {kind: max(8, round(count * min(1.0, scale))) for kind, count in CLIP_COUNTS.items()}
    made = [make_teacher_clip(kind, number) for kind, count in plan.items() for number in range(count)]
    prompts, clips = zip(*made, strict=True)
    return EncodedTeacherClips(prompts, open_latents(folder, "clip", vae, clips, CLIP_FRAMES))


def make_teacher_clip(kind: str, number: int) -> TeacherClip:
    """Make clip `number` of a kind. In one that does not begin, the thing may be anywhere."""
    draw = seed_random(f"clip {kind}", number)
    switches = (count_pixel_frames(OVERLAP),) if kind == "has changed" else ()
    clip = choose_clip(draw, switches, roam=kind != "begins")
    _, scene = clip.scenes[-1]
    return TeacherClip(str(scene), clip)
