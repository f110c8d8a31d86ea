"""Training of the network in the rolling kind, where blocks are denoised jointly (Rolling Forcing, arXiv 2509.25161).

It begins with the block-wise weights and changes only the linears of the layers, so that an adapter can hold the
result. Every block of a joint pass is told the truth of the world. At a switch that is the truth of the segment in
which the block lies, and a segment begins with the oldest block in flight: so the network learns to turn at once.

Dimension key: B clips, F frames, C channels, H rows and W columns of cells.
"""

import functools
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...model.wan import WanModel
from ...rollout.noise import Noise
from ...rollout.rolling_rollout import RollingRollout
from ...rollout.schedule import DenoisingSteps
from ...session.boundary import Boundary
from ...session.in_flight import InFlight, plan_joint_step
from ...tuning.adapter import TARGETS
from ...tuning.optimizer_state import Tensors, join_states, select_state
from ..clips import seed_random
from .bank import FIRST_BLOCKS, Bank, BankPlan, Pattern
from .coupling import couple_noise
from .forcing import ROWS, AttentionMask, NoisyPass, TeacherForcingPlan, make_mask, plan_teacher_forcing
from .joint_passes import JOINT, KINDS, LEVELS, OPENINGS, ROLLING, JointPass, make_joint_pass
from .lessons import BANK_PLAN, BLOCK, CELLS, COMPARED, GEOMETRY, STREAMED, Lesson, embed_prompts, weigh
from .network import EVALUATE_EVERY, NetworkTraining, expand, perturb, seed_rollout, use_half_precision
from .streams import find_periodic

ROLLING_PLAN: BankPlan = {pattern: BANK_PLAN[pattern] for pattern in ((), STREAMED, FIRST_BLOCKS)}
OPENINGS_PLAN: BankPlan = {FIRST_BLOCKS: (400, JOINT)}
MEMORIES = (Boundary.KEEP, Boundary.RECACHE)  # of a switch while the window reaches back to the first frame
OWN_END = {(): 30, STREAMED: 30, OPENINGS: JOINT}  # frames of own rollouts


@dataclass(frozen=True, slots=True, kw_only=True)
class RollingRecipe:
    """How the network is trained in the rolling kind."""

    seed: int = 0
    steps: int = 900
    batch: int = 8  # clips per step
    openings: int = 16  # clips per step of which only the first block is trained
    rate: float = 1e-3
    warmup: int = 10
    decay: float = 0.6  # the last share of the steps, in which the rate falls to zero
    lessons: tuple[float, ...] = (0.30, 0.30, 0.10, 0.10, 0.20)  # shares of the truth's kinds, as in `KINDS`
    own_from: float = 0.1  # share of the steps before the network sees its own rollouts
    own_share: float = 0.6  # of later steps that do
    own_every: int = 8  # steps between two batches of rollouts
    own_held: int = 6  # batches of rollouts that are kept


@dataclass(frozen=True, slots=True)
class OwnRolling:
    """A batch of clips that the network rolled out, with the noisy blocks [B, F, C, H, W] of every joint pass."""

    pattern: Pattern
    boundary: Boundary
    chosen: list[int]
    latents: Tensor  # finished ones
    passes: tuple[JointPass, ...]
    noisy: tuple[Tensor, ...]

    @property
    def switches(self) -> Pattern:
        """The latents at which the prompt changes."""
        return list_switches(self.pattern)

    def state(self) -> Tensors:
        """The numbers and tensors to resume from, by name."""
        facts = [[*OWN_END].index(self.pattern), MEMORIES.index(self.boundary), *self.chosen]
        passes = torch.tensor([[*each.noisy, each.level] for each in self.passes])
        made = {str(i): noisy for i, noisy in enumerate(self.noisy)}
        return {"facts": torch.tensor(facts), "latents": self.latents, "passes": passes} | join_states({"noisy": made})

    @classmethod
    def of_state(cls, state: Tensors) -> "OwnRolling":
        """Undo `state`."""
        pattern, boundary, *chosen = state["facts"].tolist()
        passes = tuple(JointPass(NoisyPass(start, frames), level) for start, frames, level in state["passes"].tolist())
        noisy = tuple(state[f"noisy.{i}"] for i in range(len(passes)))
        return cls([*OWN_END][pattern], MEMORIES[boundary], chosen, state["latents"], passes, noisy)


class RollingTraining(NetworkTraining[RollingRecipe]):
    """The training of the network in the rolling kind; `openings` are clips that begin where their prompts say."""

    def __init__(self, recipe: RollingRecipe, model: WanModel, bank: Bank, unseen: Bank, openings: Bank) -> None:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(is_trained(name))
        super().__init__(recipe, model, {**bank, OPENINGS: openings[FIRST_BLOCKS]}, unseen)
        self.sigmas = DenoisingSteps.of_config(ROLLING).sigmas
        self.own: list[OwnRolling] = []

    def step(self) -> dict[str, float]:
        """Make one step and return the figures of its batch."""
        recipe, n = self.recipe, self.num_steps
        draw = seed_random(f"rolling {recipe.seed}", n)
        noise = torch.Generator().manual_seed(draw.getrandbits(60))
        sees_own = n >= recipe.own_from * recipe.steps
        if sees_own and n % recipe.own_every == 0:
            self.own = [*self.own, self.roll_out(draw)][-recipe.own_held :]
        if self.own and draw.random() < recipe.own_share:
            figures = self.teach_own_passes(draw)
        else:
            figures = self.teach_true_passes(draw, noise)
        figures |= self.teach_first_passes(draw, noise)
        self.finish_step()
        if self.num_steps % EVALUATE_EVERY == 0:
            figures |= self.evaluate()
        return figures

    def teach_true_passes(self, draw: random.Random, noise: torch.Generator) -> dict[str, float]:
        """Add the gradients of joint passes over the truth with noise, behind the true past."""
        pattern, choose = draw.choices(KINDS, self.recipe.lessons)[0]
        passes, boundary = tuple(choose(draw)), draw.choice(MEMORIES)
        chosen = draw.sample(range(len(self.bank[pattern].clips)), self.recipe.batch)
        truth = find_truth(self.bank, pattern, chosen, passes)
        lesson = make_joint_lesson(self.bank, pattern, chosen, boundary, passes, perturb(truth, noise), truth)
        x_t, sigma_BF = self.add_noise(lesson, passes, noise)
        error_BF = self.regress(lesson, x_t, sigma_BF, backward=True)
        return {f"x0 {choose.__name__.removeprefix('choose_')}": error_BF.mean().item()}

    def teach_own_passes(self, draw: random.Random) -> dict[str, float]:
        """Add the gradients of joint passes of own rollouts."""
        own = draw.choice(self.own)
        first = own.switches[-1] if own.switches else 0  # blocks in flight before a switch do not know of it
        taken = sorted(draw.sample([i for i, each in enumerate(own.passes) if each.noisy.start >= first], 2))
        passes = tuple(own.passes[i] for i in taken)
        truth = find_truth(self.bank, own.pattern, own.chosen, passes)
        lesson = make_joint_lesson(self.bank, own.pattern, own.chosen, own.boundary, passes, own.latents, truth)
        x_t = torch.cat([own.noisy[i] for i in taken], dim=1)
        error_BF = self.regress(lesson, x_t, self.find_sigmas(passes, len(x_t)), backward=True)
        weights_B = lesson.weights_B
        mean = (error_BF.mean(1) * weights_B).sum() / weights_B.sum().clamp_min(1)
        return {"x0 own": mean.item(), "lost": 1 - weights_B.mean().item()}

    def teach_first_passes(self, draw: random.Random, noise: torch.Generator) -> dict[str, float]:
        """Add the gradients of the first block in the first two passes of a video; the noise of the second names it."""
        encoded = self.bank[FIRST_BLOCKS]
        chosen = draw.sample(range(len(encoded.clips)), min(self.recipe.openings, len(encoded.clips)))
        passes = tuple(make_joint_pass(0, blocks, is_ramp=True) for blocks in (1, 2))
        truth = encoded.latents[chosen].float()
        twice = torch.cat([truth, truth], dim=1)  # nothing is learnt of the second block
        lesson = make_joint_lesson(self.bank, FIRST_BLOCKS, chosen, MEMORIES[0], passes, twice, twice)
        first, named, second = torch.randn(3, *truth.shape, generator=noise)
        named = couple_noise(named, [encoded.clips[i].sky for i in chosen])
        noised = torch.lerp(self.guess_openings(chosen, noise), named, self.sigmas[1])
        x_t, sigma_BF = torch.cat([first, noised, second], dim=1), self.find_sigmas(passes, len(chosen))
        errors_BF = self.compare_flow(lesson, x_t, sigma_BF)[:, : 2 * BLOCK]
        errors_BF.mean().backward()
        errors_BF = errors_BF.detach() * sigma_BF[:, : 2 * BLOCK].square()
        return {"first": errors_BF[:, :BLOCK].mean().item(), "coupled": errors_BF[:, BLOCK:].mean().item()}

    def find_sigmas(self, passes: Sequence[JointPass], batch: int) -> Tensor:
        """Find the noise level of every frame of the passes [B, F]."""
        return self.sigmas[[level for each in passes for level in each.levels]].expand(batch, -1)

    def add_noise(self, lesson: Lesson, passes: Sequence[JointPass], noise: torch.Generator) -> tuple[Tensor, Tensor]:
        """Add the noise of their levels to the true frames of the passes; return them and the levels [B, F]."""
        target = lesson.truth[:, [group.frame for group in lesson.plan.noisy]]
        sigma_BF = self.find_sigmas(passes, len(target))
        return torch.lerp(target, torch.randn(target.shape, generator=noise), expand(sigma_BF)), sigma_BF

    @torch.no_grad()
    def roll_out(self, draw: random.Random) -> OwnRolling:
        """Roll out a batch of clips: films behind their real first block, openings from their prompts alone."""
        pattern, boundary = draw.choices([*OWN_END], (0.35, 0.40, 0.25))[0], draw.choice(MEMORIES)
        encoded, end = self.bank[pattern], OWN_END[pattern]
        chosen = draw.sample(range(len(encoded.clips)), self.recipe.batch)
        rollout = RollingRollout(self.wan, ROLLING, (len(chosen), encoded.latents.shape[2], *CELLS))
        drawn = seed_rollout(draw, len(chosen))
        start = 0 if pattern == OPENINGS else BLOCK
        made = encoded.latents[chosen][:, :start].float()
        if pattern == OPENINGS:
            named = couple_noise(drawn(0, 1), [encoded.clips[i].sky for i in chosen])
            drawn = replace_draw(drawn, named)
        switches = list_switches(pattern)
        flight: InFlight | None = None
        passes, noisy = [], []
        with use_half_precision():
            texts = self.read_prompts(pattern, chosen)
            if start:
                rollout.clean_pass(0, made, texts[0])
            while start < end:
                text = texts[sum(frame <= start for frame in switches)]
                begun = [*flight.blocks] if flight else []
                number = start // BLOCK + len(begun)
                step = plan_joint_step(flight, LEVELS, grows=pattern != OPENINGS or number < end // BLOCK)
                if step.enters:
                    begun.append(drawn(number, 0))
                passes.append(JointPass(NoisyPass(start, len(begun) * BLOCK), step.level))
                noisy.append(torch.cat(begun, dim=1))
                blocks = rollout.roll(start, begun, step.level, text, drawn, start // BLOCK)
                left = tuple(blocks[step.finishes :])
                flight = InFlight(left, step.level_after, "") if left else None
                if step.finishes:
                    made = torch.cat([made, blocks[0].float()], dim=1)
                    rollout.clean_pass(start, blocks[0], text)
                    start += BLOCK
                    if start in switches and boundary is not Boundary.KEEP:
                        rollout.recache(start, made, texts[1])
        return OwnRolling(pattern, boundary, chosen, made, tuple(passes), tuple(noisy))

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Measure the x0 error with a true past at each level, on clips that are trained and on unseen ones."""
        figures = {}
        passes = (make_joint_pass(3 * BLOCK, LEVELS),)
        for name, bank in (("learnt", self.bank), ("unseen", self.unseen)):
            chosen = [*range(min(8, len(bank[()].clips)))]
            truth = find_truth(bank, (), chosen, passes)
            lesson = make_joint_lesson(bank, (), chosen, MEMORIES[0], passes, truth, truth)
            x_t, sigma_BF = self.add_noise(lesson, passes, torch.Generator().manual_seed(0))
            error_BF = self.regress(lesson, x_t, sigma_BF, backward=False)
            for level, error in enumerate(error_BF.mean(0).unflatten(0, (LEVELS, BLOCK)).mean(1).flip(0).tolist()):
                figures[f"level {level} {name}"] = error
        return figures

    def state(self) -> Tensors:
        own = {str(i): each.state() for i, each in enumerate(self.own)}
        return super().state() | join_states({"own": join_states(own)})

    def restore(self, state: Tensors, num_steps: int) -> None:
        super().restore(state, num_steps)
        self.own = []
        while found := select_state(state, f"own.{len(self.own)}"):
            self.own.append(OwnRolling.of_state(found))


def find_truth(bank: Bank, pattern: Pattern, chosen: list[int], passes: Sequence[JointPass]) -> Tensor:
    """Find the true latents [B, F, C, H, W] up to the end of the passes."""
    end = max(each.noisy.start + each.noisy.frames for each in passes)
    frames = torch.arange(end)
    index = frames if pattern == OPENINGS else find_periodic(pattern, frames)
    return bank[pattern].latents[chosen][:, index].float()


def make_joint_lesson(
    bank: Bank,
    pattern: Pattern,
    chosen: list[int],
    boundary: Boundary,
    passes: tuple[JointPass, ...],
    past: Tensor,
    truth: Tensor,
) -> Lesson:
    """Make a lesson of joint passes; a film whose past is lost before the first of them weighs nothing."""
    plan, mask = build_joint_plan(list_switches(pattern), tuple(each.noisy for each in passes), boundary)
    rows = torch.stack([embed_prompts(bank[pattern].clips[i])[: plan.segments * ROWS] for i in chosen])
    first = passes[0].noisy.start
    before = slice(max(0, first - COMPARED), first)
    weights_B = weigh(past[:, before] - truth[:, before]) if first else torch.ones(len(chosen))
    return Lesson(plan, mask, rows, truth, past, weights_B)


def list_switches(pattern: Pattern) -> Pattern:
    """List the latents at which the prompt changes in clips of a pattern."""
    return pattern if pattern == STREAMED else ()


def is_trained(name: str) -> bool:
    """Whether a weight is that of a linear of a layer."""
    module, _, kind = name.rpartition(".")
    return kind == "weight" and re.fullmatch(TARGETS, module) is not None


def replace_draw(drawn: Noise, named: Tensor) -> Noise:
    """Replace the noise of the first block at its second level."""
    return lambda block, step: named if (block, step) == (0, 1) else drawn(block, step)


@functools.lru_cache(maxsize=256)
def build_joint_plan(
    switches: Pattern, passes: tuple[NoisyPass, ...], boundary: Boundary
) -> tuple[TeacherForcingPlan, AttentionMask]:
    changes = [(0, Boundary.CUT), *((frame, boundary) for frame in switches)]
    plan = plan_teacher_forcing(ROLLING, changes, passes, GEOMETRY.num_layers)
    return plan, make_mask(plan, GEOMETRY.grid(*CELLS), GEOMETRY.head_dim, GEOMETRY.text_len)
