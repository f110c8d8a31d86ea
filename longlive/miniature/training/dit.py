"""Training of the miniature's network: teacher forcing, then on what it rolls out itself.

The world is deterministic once a film has begun, so the truth of every later block is known, whatever the network made
of the blocks before it: a self-rollout from a real first block has a target without a teacher (cf. Self-Forcing §3).

Dimension key: B films, F frames, G groups of a lesson, C channels, H rows and W columns of cells.
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
from ...model.vae import LATENT_CHANNELS
from ...model.wan import Geometry, WanModel
from ...noise import counted_noise
from ...resume import joined, part
from ...rollout import Rollout
from ...schedule import Schedule
from ...text import WIDTH, HashedWords
from ...timeline import Boundary
from ..films import numbered
from ..grammar import Scene
from ..world import Film
from .bank import Bank, Pattern
from .forcing import ROWS, Lesson, Sight, flow, lesson, sight_of
from .optimizer import Optimizer, lay_channels_last
from .trainer import rate

GEOMETRY = Geometry(dim=256, ffn_dim=1024, num_heads=2, num_layers=4, freq_dim=256, text_dim=WIDTH)
BLOCK = RolloutConfig().block
FRAMES = 24  # latent frames of a film
FEWER_FRAMES = 15  # of a cheaper lesson; the window rolls once
BLOCKS_AFTER = 4  # a switch, that are learnt
WHOLE = 0.2  # the share of the other lessons that are whole films
LONGEST_GAP = 80  # blocks between the sink and the rest, in half of the lessons with absolute positions
SHAKEN, SHAKE = 0.7, 0.12  # the share of real pasts that get noise, and the most they get
OF_SAMPLER = 0.75  # the share of noise levels that are the sampler's own
SHARES: dict[Pattern, float] = {  # of the steps
    (): 0.50, (3,): 0.06, (6,): 0.06, (9,): 0.06, (12,): 0.08, (15,): 0.08, (3, 12): 0.03, (6, 12): 0.03,
    (6, 15): 0.05, (9, 18): 0.05,
}  # fmt: skip
PATTERNS = tuple(SHARES)
SIZES = (288, 56, 48)  # films of a pattern with no switch, one and two


def frames_of(pattern: Pattern) -> int:
    return min(FRAMES, pattern[-1] + BLOCKS_AFTER * BLOCK) if pattern else FRAMES


OPENINGS: Pattern = (FRAMES,)  # films of which only the first block is looked at
PLAN = {pattern: (SIZES[len(pattern)], frames_of(pattern)) for pattern in PATTERNS} | {OPENINGS: (1536, BLOCK)}
CELLS = (8, 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class DitRecipe:
    """How the network is trained."""

    seed: int = 0
    steps: int = 2600
    batch: int = 8  # films of a step
    openings: int = 24  # films of a step of which only the first block is learnt: it is all that prompts alone give
    openings_from: float = 0.32  # the share of the steps after which they are
    rate: float = 1.5e-3
    warmup: int = 100
    decay: float = 0.5  # the last share of the steps in which the rate falls to zero
    own_from: float = 0.5  # the share of the steps after which the network sees its own rollouts
    own_share: tuple[float, float] = (0.1, 0.4)  # of those steps that do, at first and in the last quarter
    own_every: int = 40  # steps between two rollouts of a batch
    own_held: int = 24  # batches of rollouts that are kept


@dataclass(frozen=True, slots=True)
class Owned:
    """A batch of films as the network rolled them out."""

    pattern: Pattern
    chosen: list[int]
    latents: Tensor


class DitTraining:
    """A network on its way."""

    def __init__(self, recipe: DitRecipe, bank: Bank) -> None:
        self.recipe, self.bank, self.num_steps = recipe, bank, 0
        self.model = begun(WanModel(GEOMETRY), torch.Generator().manual_seed(recipe.seed))
        self.wan = CausalWan.of_tree(self.model)
        self.optimizer = Optimizer(self.model, recipe.rate, of_muon=lambda name: name.startswith("blocks."))
        self.owned: list[Owned] = []
        self.schedule = Schedule(RolloutConfig().shift)

    @property
    def done(self) -> bool:
        return self.num_steps >= self.recipe.steps

    def step(self) -> dict[str, float]:
        """One step; the figures of its batch."""
        recipe, n = self.recipe, self.num_steps
        draw = numbered(f"dit {recipe.seed}", n)
        noise = torch.Generator().manual_seed(draw.getrandbits(60))
        progress = n / recipe.steps
        if progress >= recipe.own_from and n % recipe.own_every == 0:
            self.owned = [*self.owned[-recipe.own_held + 1 :], self.roll_out(draw)]
        early, late = recipe.own_share
        is_own = bool(self.owned) and draw.random() < (late if progress >= 0.75 else early)

        config = drawn_config(draw)
        if is_own:
            held = draw.choice(self.owned)
            pattern, chosen, context = held.pattern, held.chosen, held.latents
        else:
            pattern = draw.choices(PATTERNS, [*SHARES.values()])[0]
            if config.window > 12:
                pattern = ()
            chosen = draw.sample(range(len(self.bank[pattern].films)), recipe.batch)
            context = None
        shelf = self.bank[pattern]
        truth = shelf.latents[chosen].float()
        past = shaken(truth, noise) if context is None else context
        figures = self.learn(*drawn_lesson(draw, config, pattern), [shelf.films[i] for i in chosen], truth, past, noise)
        figures["own"] = float(is_own)

        if progress >= recipe.openings_from:
            figures["first"] = self.learn_openings(draw, noise)

        self.optimizer.step(rate(recipe, n))
        self.num_steps += 1
        return figures

    def learn_openings(self, draw: random.Random, noise: torch.Generator) -> float:
        """First blocks of many films; their loss."""
        shelf = self.bank[OPENINGS]
        chosen = draw.sample(range(len(shelf.films)), min(self.recipe.openings, len(shelf.films)))
        first = planned(RolloutConfig(), (), (0,), Boundary.RECACHE, 0)
        truth = shelf.latents[chosen].float()
        return self.learn(*first, [shelf.films[i] for i in chosen], truth, truth, noise)["loss"]

    def learn(
        self,
        plan: Lesson,
        sight: Sight,
        films: Sequence[Film],
        truth: Tensor,
        context: Tensor,
        noise: torch.Generator,
    ) -> dict[str, float]:
        """The figures of a lesson, and its gradients; `truth` and `context` [B, F, C, H, W] are whole films."""
        clean, noisy = ([group.frame for group in groups] for groups in (plan.clean, plan.noisy))
        batch = len(films)
        sigma = self.sigmas(batch, len(noisy) // BLOCK, noise)
        target = truth[:, noisy]
        draw = torch.randn(target.shape, generator=noise)
        x_t = torch.lerp(target, draw, sigma[..., None, None, None])
        timesteps = torch.cat([torch.zeros(batch, len(clean)), 1000 * sigma], dim=1)
        rows = torch.stack([prompt_rows(film)[: plan.segments * ROWS] for film in films])
        with half_precision():
            found = flow(self.wan, plan, sight, torch.cat([context[:, clean], x_t], dim=1), timesteps, rows)
        error = (found.float() - (draw - target)).square().mean((2, 3, 4))
        loss = error.mean()
        loss.backward()
        clean_error = (error.detach() * sigma.square()).mean()
        return {"loss": loss.item(), "x0": clean_error.item()}

    def sigmas(self, batch: int, blocks: int, noise: torch.Generator) -> Tensor:
        """A noise level for every frame [B, frames]: mostly those of the sampler, the same within a block."""
        of_sampler = self.schedule.sigma(self.schedule.warped(RolloutConfig().steps))
        sampled = of_sampler[torch.randint(len(of_sampler), (batch, blocks), generator=noise)]
        anything = self.schedule.sigmas[torch.randint(1000, (batch, blocks), generator=noise)]
        chosen = torch.where(torch.rand(batch, blocks, generator=noise) < OF_SAMPLER, sampled, anything)
        return chosen.repeat_interleave(BLOCK, 1)

    @torch.no_grad()
    def roll_out(self, draw: random.Random) -> Owned:
        """A batch of films as the network makes them from their real first blocks."""
        pattern = draw.choices(PATTERNS, [*SHARES.values()])[0]
        shelf = self.bank[pattern]
        chosen = draw.sample(range(len(shelf.films)), self.recipe.batch)
        rows = torch.stack([prompt_rows(shelf.films[i]) for i in chosen])
        config = RolloutConfig(positions=draw.choice(list(Positions)))
        noise = counted_noise(draw.getrandbits(60), (len(chosen), BLOCK, LATENT_CHANNELS, *CELLS), torch.float32)
        rollout = Rollout(self.wan, config, (len(chosen), LATENT_CHANNELS, *CELLS))
        made = shelf.latents[chosen][:, :BLOCK].float()
        renew = draw.random() < 0.5
        with half_precision():
            texts = [self.wan.read(rows[:, i : i + ROWS]) for i in range(0, rows.shape[1], ROWS)]
            segment = 0
            rollout.commit(0, made, texts[0])
            for start in range(BLOCK, frames_of(pattern), BLOCK):
                if start in pattern:
                    segment += 1
                    rollout.recache(start, made, texts[segment], renew=renew)
                block = rollout.denoise(start, texts[segment], noise, start).float()
                rollout.commit(start, block, texts[segment])
                made = torch.cat([made, block], dim=1)
        return Owned(pattern, chosen, made)

    def state(self) -> dict[str, Tensor]:
        owned = {}
        for i, held in enumerate(self.owned):
            facts = [PATTERNS.index(held.pattern), *held.chosen]
            owned |= {f"{i}.latents": held.latents, f"{i}.films": torch.tensor(facts)}
        return joined({"model": dict(self.model.state_dict()), "optimizer": self.optimizer.state(), "owned": owned})

    def restore(self, state: dict[str, Tensor], num_steps: int) -> None:
        self.model.load_state_dict(part(state, "model"))
        self.optimizer.restore(part(state, "optimizer"))
        owned, self.owned = part(state, "owned"), []
        for i in range(len(owned) // 2):
            pattern, *chosen = owned[f"{i}.films"].tolist()
            self.owned.append(Owned(PATTERNS[pattern], chosen, owned[f"{i}.latents"]))
        self.num_steps = num_steps


def shaken(past: Tensor, noise: torch.Generator) -> Tensor:
    """A real past [B, F, C, H, W], mostly with noise: what the network makes is never quite real."""
    if torch.rand((), generator=noise) >= SHAKEN:
        return past
    level = SHAKE * torch.rand(len(past), 1, 1, 1, 1, generator=noise)
    return past + level * torch.randn(past.shape, generator=noise)


@contextlib.contextmanager
def half_precision() -> Iterator[None]:
    """Matrix products in bf16. PyTorch warns that RMS norms then take the slower of two ways."""
    with warnings.catch_warnings(), torch.autocast("cpu", torch.bfloat16):
        warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")
        yield


def drawn_config(draw: random.Random) -> RolloutConfig:
    """Mostly the released window; also the others that are compared with it."""
    window, sink = draw.choices([(12, 3), (12, 0), (21, 0)], [0.7, 0.15, 0.15])[0]
    return RolloutConfig(window=window, sink=sink, positions=draw.choice(list(Positions)))


def drawn_lesson(draw: random.Random, config: RolloutConfig, pattern: Pattern) -> tuple[Lesson, Sight]:
    """Which blocks of a film are learnt, and after which past."""
    if pattern:
        starts = range(pattern[-1], frames_of(pattern), BLOCK)
    else:
        starts = range(0, FRAMES if config.window > 12 or draw.random() < WHOLE else FEWER_FRAMES, BLOCK)
    boundary = draw.choice((Boundary.RECACHE, Boundary.RENEW))
    gap = 0
    if config.positions is Positions.ABSOLUTE and config.sink and draw.random() < 0.5:
        gap = BLOCK * draw.randrange(LONGEST_GAP)
    return planned(config, pattern, tuple(starts), boundary, gap)


@functools.lru_cache(maxsize=1024)
def planned(
    config: RolloutConfig, pattern: Pattern, starts: tuple[int, ...], boundary: Boundary, gap: int
) -> tuple[Lesson, Sight]:
    switches = [(0, Boundary.DISCARD), *((frame, boundary) for frame in pattern)]
    plan = lesson(config, switches, starts, GEOMETRY.num_layers, gap=gap)
    return plan, sight_of(plan, GEOMETRY.grid(*CELLS), GEOMETRY.head_dim, GEOMETRY.text_len)


def prompt_rows(film: Film) -> Tensor:
    """The prompts of a film [L, D], `ROWS` rows each."""
    return torch.cat([scene_rows(scene) for _, scene in film.scenes])


@functools.lru_cache(maxsize=4096)
def scene_rows(scene: Scene) -> Tensor:
    return HashedWords(rows=ROWS)(str(scene))[0]


def begun(model: WanModel, generator: torch.Generator) -> WanModel:
    """Give a network weights from which it learns."""
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
    return model
