"""Training of the miniature's network: teacher forcing, then also on its own rollouts.

The world is deterministic once a clip has begun, so the target of every later block is known, whatever the network made
of the blocks before it: a rollout from a real first block needs no teacher (cf. Self-Forcing §3).

Dimension key: B clips, F frames, G frame groups of a plan, C channels, H rows and W columns of cells.
"""

import contextlib
import functools
import random
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...config import Positions, RolloutConfig
from ...model.causal import CausalWan
from ...model.text_encoder import TEXT_DIM, HashedWords
from ...model.vae import LATENT_CHANNELS
from ...model.wan import Geometry, WanModel
from ...rollout.noise import seed_noise
from ...rollout.rollout import Rollout
from ...rollout.schedule import Schedule
from ...session.boundary import Boundary
from ...tuning.optimizer_state import join_states, select_state
from ..clips import seed_random
from ..world import Clip
from .bank import Bank, Pattern
from .forcing import ROWS, AttentionMask, TeacherForcingPlan, make_mask, plan_teacher_forcing, predict_flow
from .optimizer import Optimizer, lay_channels_last
from .trainer import ModuleTraining

GEOMETRY = Geometry(dim=256, ffn_dim=1024, num_heads=2, num_layers=4, freq_dim=256, text_dim=TEXT_DIM)
BLOCK = RolloutConfig().block
FRAMES = 24  # latent frames of a clip
FEWER_FRAMES = 15  # of a cheaper plan; the window rolls once
BLOCKS_AFTER_SWITCH = 4  # that are trained
WHOLE_SHARE = 0.2  # of whole clips, among those without a switch
MAX_GAP = 80  # blocks between the sink and the rest, in half of the plans with absolute positions
PERTURBED_SHARE, MAX_PERTURBATION = 0.7, 0.12  # share of real pasts that get noise, and the most noise
SAMPLER_SHARE = 0.75  # of noise levels that are the sampler's own
PATTERN_SHARES: dict[Pattern, float] = {  # of the steps
    (): 0.50, (3,): 0.06, (6,): 0.06, (9,): 0.06, (12,): 0.08, (15,): 0.08, (3, 12): 0.03, (6, 12): 0.03,
    (6, 15): 0.05, (9, 18): 0.05,
}  # fmt: skip
PATTERNS = tuple(PATTERN_SHARES)
PATTERN_SIZES = (288, 56, 48)  # clips of a pattern with no, one and two switches


def count_frames(pattern: Pattern) -> int:
    return min(FRAMES, pattern[-1] + BLOCKS_AFTER_SWITCH * BLOCK) if pattern else FRAMES


FIRST_BLOCKS: Pattern = (FRAMES,)  # clips of which only the first block is trained
BANK_PLAN = {pattern: (PATTERN_SIZES[len(pattern)], count_frames(pattern)) for pattern in PATTERNS} | {
    FIRST_BLOCKS: (1536, BLOCK)
}
CELLS = (8, 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class DitRecipe:
    """How the network is trained."""

    seed: int = 0
    steps: int = 2600
    batch: int = 8  # clips per step
    openings: int = 24  # clips per step of which only the first block is trained: prompts alone decide it
    openings_from: float = 0.32  # share of the steps before those
    rate: float = 1.5e-3
    warmup: int = 100
    decay: float = 0.5  # the last share of the steps, in which the rate falls to zero
    own_from: float = 0.5  # share of the steps before the network sees its own rollouts
    own_share: tuple[float, float] = (0.1, 0.4)  # of later steps that do, at first and in the last quarter
    own_every: int = 40  # steps between two batches of rollouts
    own_held: int = 24  # batches of rollouts that are kept


@dataclass(frozen=True, slots=True)
class OwnRollouts:
    """A batch of clips that the network rolled out."""

    pattern: Pattern
    chosen: list[int]
    latents: Tensor


class DitTraining(ModuleTraining[DitRecipe]):
    """The training of the network."""

    def __init__(self, recipe: DitRecipe, bank: Bank) -> None:
        self.bank = bank
        self.model = WanModel(GEOMETRY)
        initialize_model(self.model, torch.Generator().manual_seed(recipe.seed))
        self.wan = CausalWan.of_tree(self.model)
        self.own_rollouts: list[OwnRollouts] = []
        self.schedule = Schedule(RolloutConfig().shift)
        optimizer = Optimizer(self.model, recipe.rate, of_muon=lambda name: name.startswith("blocks."))
        super().__init__(recipe, {"model": self.model}, optimizer)

    def step(self) -> dict[str, float]:
        """Make one step and return the figures of its batch."""
        recipe, n = self.recipe, self.num_steps
        draw = seed_random(f"dit {recipe.seed}", n)
        noise = torch.Generator().manual_seed(draw.getrandbits(60))
        progress = n / recipe.steps
        if progress >= recipe.own_from and n % recipe.own_every == 0:
            self.own_rollouts = [*self.own_rollouts[-recipe.own_held + 1 :], self.roll_out(draw)]
        early, late = recipe.own_share
        is_own = bool(self.own_rollouts) and draw.random() < (late if progress >= 0.75 else early)

        config = choose_config(draw)
        if is_own:
            held = draw.choice(self.own_rollouts)
            pattern, chosen, context = held.pattern, held.chosen, held.latents
        else:
            pattern = draw.choices(PATTERNS, [*PATTERN_SHARES.values()])[0]
            if config.window > 12:
                pattern = ()
            chosen = draw.sample(range(len(self.bank[pattern].clips)), recipe.batch)
            context = None
        encoded = self.bank[pattern]
        truth = encoded.latents[chosen].float()
        past = perturb(truth, noise) if context is None else context
        figures = self.train_plan(
            *choose_plan(draw, config, pattern), [encoded.clips[i] for i in chosen], truth, past, noise
        )
        figures["own"] = float(is_own)

        if progress >= recipe.openings_from:
            figures["first"] = self.train_first_blocks(draw, noise)

        self.finish_step()
        return figures

    def train_first_blocks(self, draw: random.Random, noise: torch.Generator) -> float:
        """Add the gradients of the first blocks of many clips; return their loss."""
        encoded = self.bank[FIRST_BLOCKS]
        chosen = draw.sample(range(len(encoded.clips)), min(self.recipe.openings, len(encoded.clips)))
        first = build_plan(RolloutConfig(), (), (0,), Boundary.RECACHE, 0)
        truth = encoded.latents[chosen].float()
        return self.train_plan(*first, [encoded.clips[i] for i in chosen], truth, truth, noise)["loss"]

    def train_plan(
        self,
        plan: TeacherForcingPlan,
        mask: AttentionMask,
        clips: Sequence[Clip],
        truth: Tensor,
        context: Tensor,
        noise: torch.Generator,
    ) -> dict[str, float]:
        """Add the gradients of a plan and return its figures; `truth` and `context` [B, F, C, H, W] are whole clips."""
        clean, noisy = ([group.frame for group in groups] for groups in (plan.clean, plan.noisy))
        batch = len(clips)
        sigma = self.choose_sigmas(batch, len(noisy) // BLOCK, noise)
        target = truth[:, noisy]
        draw = torch.randn(target.shape, generator=noise)
        x_t = torch.lerp(target, draw, sigma[..., None, None, None])
        timesteps = torch.cat([torch.zeros(batch, len(clean)), 1000 * sigma], dim=1)
        rows = torch.stack([embed_prompts(clip)[: plan.segments * ROWS] for clip in clips])
        with use_half_precision():
            predicted = predict_flow(self.wan, plan, mask, torch.cat([context[:, clean], x_t], dim=1), timesteps, rows)
        error = (predicted.float() - (draw - target)).square().mean((2, 3, 4))
        loss = error.mean()
        loss.backward()
        clean_error = (error.detach() * sigma.square()).mean()
        return {"loss": loss.item(), "x0": clean_error.item()}

    def choose_sigmas(self, batch: int, blocks: int, noise: torch.Generator) -> Tensor:
        """Choose a noise level for every frame [B, frames]: mostly those of the sampler, the same within a block."""
        of_sampler = self.schedule.sigma(self.schedule.warp(RolloutConfig().steps))
        sampled = of_sampler[torch.randint(len(of_sampler), (batch, blocks), generator=noise)]
        anything = self.schedule.sigmas[torch.randint(1000, (batch, blocks), generator=noise)]
        chosen = torch.where(torch.rand(batch, blocks, generator=noise) < SAMPLER_SHARE, sampled, anything)
        return chosen.repeat_interleave(BLOCK, 1)

    @torch.no_grad()
    def roll_out(self, draw: random.Random) -> OwnRollouts:
        """Roll out a batch of clips from their real first blocks."""
        pattern = draw.choices(PATTERNS, [*PATTERN_SHARES.values()])[0]
        encoded = self.bank[pattern]
        chosen = draw.sample(range(len(encoded.clips)), self.recipe.batch)
        rows = torch.stack([embed_prompts(encoded.clips[i]) for i in chosen])
        config = RolloutConfig(positions=draw.choice(list(Positions)))
        noise = seed_noise(draw.getrandbits(60), (len(chosen), BLOCK, LATENT_CHANNELS, *CELLS), torch.float32)
        rollout = Rollout(self.wan, config, (len(chosen), LATENT_CHANNELS, *CELLS))
        made = encoded.latents[chosen][:, :BLOCK].float()
        renew = draw.random() < 0.5
        with use_half_precision():
            texts = [self.wan.read_prompt(rows[:, i : i + ROWS]) for i in range(0, rows.shape[1], ROWS)]
            segment = 0
            rollout.clean_pass(0, made, texts[0])
            for start in range(BLOCK, count_frames(pattern), BLOCK):
                if start in pattern:
                    segment += 1
                    rollout.recache(start, made, texts[segment], renew=renew)
                block = rollout.denoise(start, texts[segment], noise, start).float()
                rollout.clean_pass(start, block, texts[segment])
                made = torch.cat([made, block], dim=1)
        return OwnRollouts(pattern, chosen, made)

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


def choose_config(draw: random.Random) -> RolloutConfig:
    """Choose mostly the released window, else one that the evaluation compares with it."""
    window, sink = draw.choices([(12, 3), (12, 0), (21, 0)], [0.7, 0.15, 0.15])[0]
    return RolloutConfig(window=window, sink=sink, positions=draw.choice(list(Positions)))


def choose_plan(
    draw: random.Random, config: RolloutConfig, pattern: Pattern
) -> tuple[TeacherForcingPlan, AttentionMask]:
    """Choose which blocks of a clip to train, and the past they see."""
    if pattern:
        starts = range(pattern[-1], count_frames(pattern), BLOCK)
    else:
        starts = range(0, FRAMES if config.window > 12 or draw.random() < WHOLE_SHARE else FEWER_FRAMES, BLOCK)
    boundary = draw.choice((Boundary.RECACHE, Boundary.RENEW))
    gap = 0
    if config.positions is Positions.ABSOLUTE and config.sink and draw.random() < 0.5:
        gap = BLOCK * draw.randrange(MAX_GAP)
    return build_plan(config, pattern, tuple(starts), boundary, gap)


@functools.lru_cache(maxsize=1024)
def build_plan(
    config: RolloutConfig, pattern: Pattern, starts: tuple[int, ...], boundary: Boundary, gap: int
) -> tuple[TeacherForcingPlan, AttentionMask]:
    switches = [(0, Boundary.CUT), *((frame, boundary) for frame in pattern)]
    plan = plan_teacher_forcing(config, switches, starts, GEOMETRY.num_layers, gap=gap)
    return plan, make_mask(plan, GEOMETRY.grid(*CELLS), GEOMETRY.head_dim, GEOMETRY.text_len)


def embed_prompts(clip: Clip) -> Tensor:
    """Embed the prompts of a clip [L, D], `ROWS` rows each."""
    return torch.cat([embed_prompt(str(scene)) for _, scene in clip.scenes])


@functools.lru_cache(maxsize=4096)
def embed_prompt(prompt: str) -> Tensor:
    """Embed a prompt [ROWS, D]."""
    return HashedWords(rows=ROWS)(prompt)[0]


def initialize_model(model: WanModel, generator: torch.Generator) -> None:
    """Set weights that train, in place."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.zero_()
            elif "norm" in name:
                weight.fill_(1.0)
            elif name.endswith("modulation") or name == "head.head.weight":
                weight.normal_(0, 0.02, generator=generator)
            else:
                weight.normal_(0, weight[0].numel() ** -0.5, generator=generator)
    lay_channels_last(model)
