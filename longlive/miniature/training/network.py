"""What the trainings of the network share: lessons on real clips, and on the network's own rollouts.

The world is deterministic once a clip has begun, so the target of every later block is known, whatever the network made
of the blocks before it: a rollout from a real first block needs no teacher (cf. Self-Forcing §3).

Dimension key: B clips, F frames, G frame groups of a plan, C channels, H rows and W columns of cells.
"""

import contextlib
import random
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from ...config import Positions, RolloutConfig
from ...model.causal import CausalWan, TextKeys
from ...model.vae import LATENT_CHANNELS
from ...model.wan import WanModel
from ...rollout.noise import Noise, seed_noise
from ...rollout.rollout import Rollout
from ...rollout.schedule import Schedule
from ...session.boundary import Boundary
from ...tuning.optimizer_state import join_states, select_state
from .bank import FIRST_BLOCKS, FRAMES, Bank, Pattern
from .coupling import couple_noise
from .forcing import ROWS, predict_flow
from .lessons import (
    BLOCK,
    CELLS,
    PATTERN_SHARES,
    PATTERNS,
    UNSEEN_PLAN,
    Lesson,
    build_plan,
    choose_config,
    choose_plan,
    count_frames,
    embed_prompts,
    make_lesson,
    make_opening,
)
from .optimizer import Optimizer
from .trainer import ModuleTraining, Recipe

SAMPLER_SHARE = 0.75  # of noise levels that are the sampler's own
COUPLED_SHARE = 0.5  # of first blocks, at the sampler's second level
EVALUATE_EVERY = 100  # steps
PERTURBED_SHARE, MAX_PERTURBATION = 0.7, 0.12  # share of real pasts that get noise, and the most noise


class NetworkRecipe(Recipe, Protocol):
    """How the network is trained."""

    @property
    def batch(self) -> int: ...
    @property
    def openings(self) -> int: ...
    @property
    def own_held(self) -> int: ...


NetworkRecipeT = TypeVar("NetworkRecipeT", bound=NetworkRecipe)


@dataclass(frozen=True, slots=True)
class OwnRollouts:
    """A batch of clips that the network rolled out."""

    pattern: Pattern
    chosen: list[int]
    latents: Tensor


class NetworkTraining(ModuleTraining[NetworkRecipeT]):
    """A training of the network. A subclass adds `step`."""

    def __init__(self, recipe: NetworkRecipeT, model: WanModel, bank: Bank, unseen: Bank) -> None:
        self.model, self.bank, self.unseen = model, bank, unseen
        self.wan = CausalWan.of_tree(model)
        self.own_rollouts: list[OwnRollouts] = []
        self.schedule = Schedule(RolloutConfig().shift)
        self.sampler_sigmas = self.schedule.sigma(self.schedule.warp(RolloutConfig().steps))
        optimizer = Optimizer(model, recipe.rate, of_muon=lambda name: name.startswith("blocks."))
        super().__init__(recipe, {"model": model}, optimizer)

    def teach_truth(self, draw: random.Random, noise: torch.Generator) -> dict[str, float]:
        """Add the gradients of a batch of real clips with their real past."""
        config = choose_config(draw)
        pattern = draw.choices(PATTERNS, [*PATTERN_SHARES.values()])[0] if config.window <= 12 else ()
        chosen = draw.sample(range(len(self.bank[pattern].clips)), self.recipe.batch)
        truth = self.bank[pattern].latents[chosen].float()
        lesson = make_lesson(self.bank, pattern, chosen, perturb(truth, noise), *choose_plan(draw, config, pattern))
        return self.teach(lesson, noise)

    def teach_own(self, draw: random.Random, noise: torch.Generator) -> dict[str, float]:
        """Add the gradients of real clips whose past is the network's own rollout."""
        held, config = draw.choice(self.own_rollouts), choose_config(draw)
        plan = choose_plan(draw, config, held.pattern)
        return self.teach(make_lesson(self.bank, held.pattern, held.chosen, held.latents, *plan), noise)

    def teach_openings(self, draw: random.Random, noise: torch.Generator) -> dict[str, float]:
        """Add the gradients of the first blocks of many clips, some with noise that names their skies."""
        encoded = self.bank[FIRST_BLOCKS]
        chosen = draw.sample(range(len(encoded.clips)), min(self.recipe.openings, len(encoded.clips)))
        lesson = make_opening(self.bank, chosen)
        half = round(COUPLED_SHARE * len(chosen))
        sigma_BF = self.choose_sigmas(len(chosen), 1, noise)
        sigma_BF[:half] = self.sampler_sigmas[1]
        draw_BFCHW = torch.randn(lesson.truth.shape, generator=noise)
        draw_BFCHW[:half] = couple_noise(draw_BFCHW[:half], [encoded.clips[i].sky for i in chosen[:half]])
        seen_BFCHW = torch.cat([self.guess_openings(chosen[:half], noise), lesson.truth[half:]])
        x_t = torch.lerp(seen_BFCHW, draw_BFCHW, expand(sigma_BF))
        error_BF = self.regress(lesson, x_t, sigma_BF, backward=True)
        return {"first": error_BF[half:].mean().item(), "coupled": error_BF[:half].mean().item()}

    @torch.no_grad()
    def guess_openings(self, chosen: list[int], noise: torch.Generator) -> Tensor:
        """Guess first blocks as the sampler's first step does."""
        lesson = make_opening(self.bank, chosen)
        x_t = torch.randn(lesson.truth.shape, generator=noise)
        sigma_BF = self.sampler_sigmas[0].expand(x_t.shape[:2])
        return x_t - expand(sigma_BF) * self.predict(lesson, x_t, sigma_BF)

    def teach(self, lesson: Lesson, noise: torch.Generator) -> dict[str, float]:
        """Add the gradients of a lesson at chosen noise levels; return its x0 error."""
        target = lesson.truth[:, [group.frame for group in lesson.plan.noisy]]
        sigma_BF = self.choose_sigmas(len(target), target.shape[1] // BLOCK, noise)
        x_t = torch.lerp(target, torch.randn(target.shape, generator=noise), expand(sigma_BF))
        error_BF = self.regress(lesson, x_t, sigma_BF, backward=True)
        return {"x0": error_BF.mean().item(), "lost": 1 - lesson.weights_B.mean().item()}

    def regress(self, lesson: Lesson, x_t: Tensor, sigma_BF: Tensor, *, backward: bool) -> Tensor:
        """Compare the predicted flow with the true one, with gradients if asked; return the errors of x0 [B, F]."""
        error_BF = self.compare_flow(lesson, x_t, sigma_BF)
        if backward:
            (error_BF * lesson.weights_B[:, None]).mean().backward()
        return error_BF.detach() * sigma_BF.square()

    def compare_flow(self, lesson: Lesson, x_t: Tensor, sigma_BF: Tensor) -> Tensor:
        """Compare the predicted flow with the one that leads to the truth; return the squared errors [B, F]."""
        target = lesson.truth[:, [group.frame for group in lesson.plan.noisy]]
        error = self.predict(lesson, x_t, sigma_BF) - (x_t - target) / expand(sigma_BF)
        return error.square().mean((2, 3, 4))

    def predict(self, lesson: Lesson, x_t: Tensor, sigma_BF: Tensor) -> Tensor:
        """Predict the flow of a lesson's noisy blocks."""
        clean = [group.frame for group in lesson.plan.clean]
        timesteps = torch.cat([torch.zeros(len(x_t), len(clean)), 1000 * sigma_BF], dim=1)
        latents = torch.cat([lesson.past[:, clean], x_t], dim=1)
        with use_half_precision():
            return predict_flow(self.wan, lesson.plan, lesson.mask, latents, timesteps, lesson.rows_BLD).float()

    def choose_sigmas(self, batch: int, blocks: int, noise: torch.Generator) -> Tensor:
        """Choose a noise level for every frame [B, frames]: mostly those of the sampler, the same within a block."""
        sampled = self.sampler_sigmas[torch.randint(len(self.sampler_sigmas), (batch, blocks), generator=noise)]
        anything = self.schedule.sigmas[torch.randint(1000, (batch, blocks), generator=noise)]
        chosen = torch.where(torch.rand(batch, blocks, generator=noise) < SAMPLER_SHARE, sampled, anything)
        return chosen.repeat_interleave(BLOCK, 1)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Measure the x0 error with a true past, by kind of lesson, on clips that are trained and on unseen ones."""
        figures = {}
        for name, bank in (("learnt", self.bank), ("unseen", self.unseen)):
            for pattern, (count, _) in UNSEEN_PLAN.items():
                chosen = [*range(min(count, len(bank[pattern].clips)))]
                if pattern == FIRST_BLOCKS:
                    lesson, kind = make_opening(bank, chosen), "first"
                else:
                    starts = tuple(range(pattern[-1] if pattern else BLOCK, FRAMES, BLOCK))
                    config = RolloutConfig(positions=Positions.UNBOUNDED)
                    plan = build_plan(config, pattern, starts, Boundary.RECACHE, 0)
                    past = bank[pattern].latents[chosen].float()
                    lesson, kind = make_lesson(bank, pattern, chosen, past, *plan), "switch" if pattern else "plain"
                noise = torch.Generator().manual_seed(0)
                target = lesson.truth[:, [group.frame for group in lesson.plan.noisy]]
                sigma_BF = self.sampler_sigmas[torch.arange(target.shape[1] // BLOCK) % len(self.sampler_sigmas)]
                sigma_BF = sigma_BF.repeat_interleave(BLOCK).expand(target.shape[:2])
                x_t = torch.lerp(target, torch.randn(target.shape, generator=noise), expand(sigma_BF))
                figures[f"{kind} {name}"] = self.regress(lesson, x_t, sigma_BF, backward=False).mean().item()
        return figures

    @torch.no_grad()
    def add_rollouts(self, draw: random.Random, patterns: Mapping[Pattern, float]) -> None:
        """Roll out a batch of clips from their real first blocks; forget the oldest batch."""
        pattern = draw.choices([*patterns], [*patterns.values()])[0]
        chosen = draw.sample(range(len(self.bank[pattern].clips)), self.recipe.batch)
        config = RolloutConfig(positions=draw.choice(list(Positions)))
        rollout = start_rollout(self.wan, config, len(chosen))
        noise = seed_rollout(draw, len(chosen))
        made = self.bank[pattern].latents[chosen][:, :BLOCK].float()
        renew = draw.random() < 0.5
        with use_half_precision():
            texts = self.read_prompts(pattern, chosen)
            rollout.clean_pass(0, made, texts[0])
            for start in range(BLOCK, count_frames(pattern), BLOCK):
                text = texts[sum(frame <= start for frame in pattern)]
                if start in pattern:
                    rollout.recache(start, made, text, renew=renew)
                made = torch.cat([made, extend_rollout(rollout, start, text, noise)], dim=1)
        self.own_rollouts = [*self.own_rollouts, OwnRollouts(pattern, chosen, made)][-self.recipe.own_held :]

    def read_prompts(self, pattern: Pattern, chosen: list[int]) -> list[TextKeys]:
        """Read the prompts of clips, one scene after the other."""
        rows = torch.stack([embed_prompts(self.bank[pattern].clips[i]) for i in chosen])
        return [self.wan.read_prompt(rows[:, i : i + ROWS]) for i in range(0, rows.shape[1], ROWS)]

    def state(self) -> dict[str, Tensor]:
        owned = {}
        for i, rollouts in enumerate(self.own_rollouts):
            facts = [PATTERNS.index(rollouts.pattern), *rollouts.chosen]
            owned |= {f"{i}.latents": rollouts.latents, f"{i}.films": torch.tensor(facts)}
        return super().state() | join_states({"owned": owned})

    def restore(self, state: dict[str, Tensor], num_steps: int) -> None:
        super().restore(state, num_steps)
        owned, self.own_rollouts = select_state(state, "owned"), []
        for i in range(len(owned) // 2):
            pattern, *chosen = owned[f"{i}.films"].tolist()
            self.own_rollouts.append(OwnRollouts(PATTERNS[pattern], chosen, owned[f"{i}.latents"]))


def expand(sigma_BF: Tensor) -> Tensor:
    return sigma_BF[..., None, None, None]


def start_rollout(wan: CausalWan, config: RolloutConfig, batch: int) -> Rollout:
    return Rollout(wan, config, (batch, LATENT_CHANNELS, *CELLS))


def seed_rollout(draw: random.Random, batch: int) -> Noise:
    return seed_noise(draw.getrandbits(60), (batch, BLOCK, LATENT_CHANNELS, *CELLS), torch.float32)


def extend_rollout(rollout: Rollout, start: int, text: TextKeys, noise: Noise) -> Tensor:
    """Make the block at `start` and write it into the KV cache."""
    block = rollout.denoise(start, text, noise, start).float()
    rollout.clean_pass(start, block, text)
    return block


def perturb(past: Tensor, noise: torch.Generator) -> Tensor:
    """Add noise to most real pasts [B, F, C, H, W], because the network's own past is never exact."""
    if torch.rand((), generator=noise) >= PERTURBED_SHARE:
        return past
    level = MAX_PERTURBATION * torch.rand(len(past), 1, 1, 1, 1, generator=noise)
    return past + level * torch.randn(past.shape, generator=noise)


@contextlib.contextmanager
def use_half_precision() -> Iterator[None]:
    """Compute matrix products in bf16, without PyTorch's warning that RMS norms are then slower."""
    with warnings.catch_warnings(), torch.autocast("cpu", torch.bfloat16):
        warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")
        yield
