"""The miniature's teacher: a network that denoises whole clips, for streaming long tuning (`longlive/tune/`).

It begins as the miniature itself and learns to see a clip at once, from films that begin, that are under way, and that
have just changed their prompt. Some prompts are left out, so that it can also be asked without one.

Dimension key: B clips, F frames, C channels, H and W cells, L rows and D width of a prompt embedding.
"""

import functools
import logging
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from ...config import MAX_STEP, pixel_frames
from ...model.checkpoint import load_model
from ...model.vae import WanVAE, normalised
from ...resume import joined, part
from ...store import write_atomically
from ...text import HashedWords
from ...tune.dmd import Noising, Score
from ..films import numbered, random_film, random_scene
from ..grammar import Scene
from ..world import SIZE, render
from .dit import half_precision
from .forcing import ROWS
from .optimizer import Optimizer, lay_channels_last
from .trainer import RECIPE, made_with, rate
from .vae import encoded

log = logging.getLogger(__name__)

CLIP = 21  # frames
OVERLAP = 3  # frames that a film's latest prompt does not rule yet, where it has just changed
CLIPS = {"begins": 320, "goes on": 320, "has changed": 192}
GRID = 4  # pixels: where a latent begins, the thing is at a multiple of them
AT_ONCE = 4  # clips encoded together


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherRecipe:
    """How the teacher is trained."""

    seed: int = 0
    steps: int = 1000
    batch: int = 8  # clips of a step
    unprompted: float = 0.15  # the share of clips shown without their prompt
    rate: float = 1.2e-3
    warmup: int = 50
    decay: float = 0.6  # the last share of the steps in which the rate falls to zero


@dataclass(frozen=True, slots=True)
class Clips:
    """Clips by number: their prompts, and their latents [N, F, C, H, W] in half precision."""

    prompts: tuple[str, ...]
    latents: Tensor


class TeacherTraining:
    """A teacher on its way."""

    def __init__(self, recipe: TeacherRecipe, clips: Clips, miniature: Path) -> None:
        self.recipe, self.clips, self.num_steps = recipe, clips, 0
        self.model, _ = load_model(miniature, dtype=torch.float32)
        self.model.requires_grad_(True)
        lay_channels_last(self.model)
        self.score = Score(self.model)
        self.optimizer = Optimizer(self.model, recipe.rate, of_muon=lambda name: name.startswith("blocks."))

    @property
    def done(self) -> bool:
        return self.num_steps >= self.recipe.steps

    def step(self) -> dict[str, float]:
        """One step; the figures of its batch."""
        recipe, n = self.recipe, self.num_steps
        draw = numbered(f"teacher {recipe.seed}", n)
        noise = torch.Generator().manual_seed(draw.getrandbits(60))
        chosen = draw.sample(range(len(self.clips.prompts)), recipe.batch)
        clip = self.clips.latents[chosen].float()
        noising = Noising.of(
            torch.randint(MAX_STEP, (len(chosen),), generator=noise), torch.randn(clip.shape, generator=noise)
        )
        embedding = torch.stack(
            [rows_of("" if draw.random() < recipe.unprompted else self.clips.prompts[i]) for i in chosen]
        )
        with half_precision():
            flow = self.score.flow(noising.of_clip(clip), noising.timesteps_B, embedding)
        loss = (flow.float() - (noising.noise_BFCHW - clip)).square().mean()
        loss.backward()
        self.optimizer.step(rate(recipe, n))
        self.num_steps += 1
        return {"loss": loss.item()}

    def state(self) -> dict[str, Tensor]:
        return joined({"model": dict(self.model.state_dict()), "optimizer": self.optimizer.state()})

    def restore(self, state: dict[str, Tensor], num_steps: int) -> None:
        self.model.load_state_dict(part(state, "model"))
        self.optimizer.restore(part(state, "optimizer"))
        self.num_steps = num_steps


@functools.lru_cache(maxsize=4096)
def rows_of(prompt: str) -> Tensor:
    return HashedWords(rows=ROWS)(prompt)[0]


def clips_of(path: Path, vae: WanVAE, scale: float) -> Clips:
    """The clips in `path`, made if it is not there; `scale` is of their number."""
    plan = {kind: max(8, round(count * min(1.0, scale))) for kind, count in CLIPS.items()}
    made_with(path, plan)
    shot = [filmed(kind, number) for kind, count in plan.items() for number in range(count)]
    if not path.exists():
        log.info("encoding %d clips of %d latents", len(shot), CLIP)
        write_atomically(path, {"clips": _encoded(vae, shot)}, {RECIPE: str(plan)})
    return Clips(tuple(prompt for prompt, *_ in shot), load_file(path)["clips"])


def filmed(kind: str, number: int):
    """A clip's prompt, its film, and by how much the film is rolled, (rows, columns) of pixels."""
    draw = numbered(f"clip {kind}", number)
    film = random_film(draw, (pixel_frames(OVERLAP),) if kind == "has changed" else ())
    _, scene = film.scenes[-1]
    if kind == "begins":
        return str(scene), film, (0, 0)
    rolled = (GRID * draw.randrange(SIZE // GRID), GRID * draw.randrange(SIZE // GRID))
    return str(asked(draw, scene) if kind == "goes on" else scene), film, rolled


def asked(draw: random.Random, scene: Scene) -> Scene:
    """The same scene, said to have begun anywhere."""
    return Scene(scene.colour, scene.shape, scene.motion, scene.background, random_scene(draw).start)


@torch.no_grad()
def _encoded(vae: WanVAE, shot: list) -> Tensor:
    lay_channels_last(vae)
    found = []
    for first in range(0, len(shot), AT_ONCE):
        some = shot[first : first + AT_ONCE]
        pixels, _ = render([film for _, film, _ in some], pixel_frames(CLIP))
        moved = torch.stack([film.roll(by, (-2, -1)) for film, (_, _, by) in zip(pixels, some, strict=True)])
        with torch.autocast("cpu", torch.bfloat16):
            z_BCTHW = encoded(vae, moved.transpose(1, 2).contiguous(memory_format=torch.channels_last_3d))
        found.append(normalised(z_BCTHW.float().transpose(1, 2)).half())
    return torch.cat(found)
