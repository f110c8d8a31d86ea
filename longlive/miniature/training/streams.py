"""Training on streams: rollouts of the network that go on, far beyond the length of any clip.

A network that has only practised clips drifts in longer videos: what it makes is not what it has learnt to continue.
Here it continues its own videos, some blocks a visit, and is told the truth. That is known for ever, because things
come back to their places on the torus. A stream that runs ahead of the truth or behind it is compared with the truth of
its own place (`VideoStream.align`), else the target lies elsewhere than the past shows, which teaches blur.

Dimension key: B clips, F frames, C channels, H rows and W columns of cells.
"""

import random
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...config import Positions, RolloutConfig
from ...model.wan import WanModel
from ...rollout.rollout import Rollout
from ...session.boundary import Boundary
from ...tuning.optimizer_state import Tensors, join_states, select_state
from ..clips import seed_random
from .bank import FRAMES, Bank, Pattern
from .forcing import ROWS
from .lessons import (
    BLOCK,
    COMPARED,
    PATTERN_SHARES,
    PATTERNS,
    PERIOD,
    SETTLED,
    STREAMED,
    Lesson,
    build_plan,
    embed_prompts,
    weigh,
)
from .network import (
    EVALUATE_EVERY,
    NetworkTraining,
    extend_rollout,
    seed_rollout,
    start_rollout,
    use_half_precision,
)

RECENT = FRAMES - RolloutConfig().sink  # latents that a stream keeps, and its first ones
STARTS = tuple(range(FRAMES - 4 * BLOCK, FRAMES, BLOCK))  # of the trained blocks, among the latents that are kept
ALIGNMENTS = (-1, 0, 1)  # latents that a visit may shift the truth by
SWITCHED_SHARES = {pattern: share for pattern, share in PATTERN_SHARES.items() if pattern}


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamRecipe:
    """How the network is trained on streams, or without them to compare."""

    seed: int = 0
    steps: int = 1600
    batch: int = 8  # clips per step
    openings: int = 24  # clips per step of which only the first block is trained
    rate: float = 6e-4
    warmup: int = 20
    decay: float = 0.6  # the last share of the steps, in which the rate falls to zero
    lessons: tuple[float, float, float] = (0.55, 0.25, 0.20)  # shares of streams, own rollouts, and the truth
    streams: int = 8  # that go on side by side
    after_switch: float = 0.4  # share of streams that begin with a switch
    depths: tuple[int, ...] = (48, 96, 144, 240)  # latents after which a stream begins anew
    visit: int = 2  # blocks by which a stream goes on
    own_every: int = 25  # steps between two batches of rollouts
    own_held: int = 8  # batches of rollouts that are kept

    @property
    def has_streams(self) -> bool:
        return self.lessons[0] > 0


CONTROL = StreamRecipe(lessons=(0.0, 0.4, 0.6))
"""The lessons of the training before, continued for as long."""


@dataclass(slots=True)
class VideoStream:
    """A batch of videos that go on."""

    pattern: Pattern
    chosen: list[int]
    until: int  # latents
    rollout: Rollout
    end: int = BLOCK  # latents made so far
    latents: Tensor = field(default_factory=lambda: torch.empty(0))  # the first ones and the newest
    shifts_B: Tensor = field(default_factory=lambda: torch.empty(0))  # latents that each video is ahead of its clip

    def find_truth(self, latents: Tensor, shifts_B: Tensor) -> Tensor:
        """Find what the kept latents of videos [B, F, C, H, W] that are ahead by `shifts` should be."""
        frames = torch.cat([torch.arange(FRAMES - RECENT), torch.arange(self.end - RECENT, self.end)])
        index_BF = find_periodic(self.pattern, frames + shifts_B[:, None])
        return latents[torch.arange(len(latents))[:, None], index_BF].float()

    def align(self, latents: Tensor) -> Tensor:
        """Shift the truth by at most a latent to what each video shows before its trained blocks; return the truth."""
        before = slice(STARTS[0] - COMPARED, STARTS[0])
        candidates = torch.stack([self.shifts_B + shift for shift in ALIGNMENTS])
        truths = torch.stack([self.find_truth(latents, shifts_B) for shifts_B in candidates])
        errors = (truths[:, :, before] - self.latents[:, before]).square().mean((2, 3, 4, 5))
        best_B, videos = errors.argmin(0), torch.arange(len(latents))
        self.shifts_B = candidates[best_B, videos]
        return truths[best_B, videos]

    def add(self, block: Tensor) -> None:
        """Add a block; forget the oldest latents after the first ones."""
        self.end += BLOCK
        made, sink = torch.cat([self.latents, block], dim=1), FRAMES - RECENT
        self.latents = torch.cat([made[:, :sink], made[:, sink:][:, -RECENT:]], dim=1)

    def state(self) -> Tensors:
        """The numbers and tensors to resume from, by name."""
        positions = list(Positions).index(self.rollout.config.positions)
        facts = torch.tensor([PATTERNS.index(self.pattern), positions, self.until, self.end, *self.chosen])
        layers = {f"{i}.{j}": tensor for i, layer in enumerate(self.rollout.cache.layers)
                  for j, tensor in enumerate(layer.tensors)}  # fmt: skip
        return {"facts": facts, "latents": self.latents, "shifts": self.shifts_B} | join_states({"cache": layers})


def find_periodic(pattern: Pattern, frames: Tensor) -> Tensor:
    """Find the latents of a clip that equal `frames` of its endless film: things are back after `PERIOD` latents."""
    settled = (pattern[-1] if pattern else FRAMES - PERIOD - SETTLED) + SETTLED
    return torch.where(frames < settled + PERIOD, frames.clamp_min(0), settled + (frames - settled) % PERIOD)


class StreamTraining(NetworkTraining[StreamRecipe]):
    """The training of a network on streams."""

    def __init__(self, recipe: StreamRecipe, model: WanModel, bank: Bank, unseen: Bank) -> None:
        super().__init__(recipe, model, bank, unseen)
        self.streams: list[VideoStream] = []

    def step(self) -> dict[str, float]:
        """Make one step and return the figures of its batch."""
        recipe, n = self.recipe, self.num_steps
        draw = seed_random(f"streams {recipe.seed}", n)
        noise = torch.Generator().manual_seed(draw.getrandbits(60))
        if n % recipe.own_every == 0:
            self.add_rollouts(draw, SWITCHED_SHARES if recipe.has_streams else PATTERN_SHARES)
        teach = draw.choices((self.teach_stream, self.teach_own, self.teach_truth), recipe.lessons)[0]
        figures = teach(draw, noise) | self.teach_openings(draw, noise)
        self.finish_step()
        if self.num_steps % EVALUATE_EVERY == 0:
            figures |= self.evaluate()
        return figures

    def teach_stream(self, draw: random.Random, noise: torch.Generator) -> dict[str, float]:
        """Add the gradients of the newest blocks of a stream, which goes on before."""
        stream = self.visit_stream(draw)
        encoded = self.bank[stream.pattern]
        truth = stream.align(encoded.latents[stream.chosen])
        config = stream.rollout.config
        gap = stream.end - FRAMES if config.positions is Positions.ABSOLUTE else 0
        before = slice(STARTS[0] - COMPARED, STARTS[0])
        lesson = Lesson(
            *build_plan(config, (), STARTS, Boundary.RECACHE, gap),
            torch.stack([embed_prompts(encoded.clips[i])[-ROWS:] for i in stream.chosen]),
            truth,
            stream.latents,
            weigh(stream.latents[:, before] - truth[:, before]),
        )
        figures = self.teach(lesson, noise)
        return {f"stream {name}": value for name, value in figures.items()} | {"depth": float(stream.end)}

    def visit_stream(self, draw: random.Random) -> VideoStream:
        """Let a stream go on by some blocks; where one is missing or has reached its end, a new one begins."""
        place = draw.randrange(self.recipe.streams)
        with use_half_precision(), torch.no_grad():
            if place >= len(self.streams):
                stream = self.begin_stream(draw)
                self.streams.append(stream)
            elif self.streams[place].end >= self.streams[place].until:
                stream = self.streams[place] = self.begin_stream(draw)
            else:
                stream = self.streams[place]
                self.continue_stream(stream, self.recipe.visit, draw)
        return stream

    def begin_stream(self, draw: random.Random) -> VideoStream:
        """Begin a stream from real first blocks, and let it go on until it keeps as many latents as it can."""
        pattern = STREAMED if draw.random() < self.recipe.after_switch else ()
        chosen = draw.sample(range(len(self.bank[pattern].clips)), self.recipe.batch)
        rollout = start_rollout(self.wan, RolloutConfig(positions=draw.choice(list(Positions))), len(chosen))
        stream = VideoStream(pattern, chosen, draw.choice(self.recipe.depths), rollout)
        stream.latents = self.bank[pattern].latents[chosen][:, :BLOCK].float()
        stream.shifts_B = torch.zeros(len(chosen), dtype=torch.long)
        rollout.clean_pass(0, stream.latents, self.read_prompts(pattern, chosen)[0])
        kept_from = pattern[-1] if pattern else RolloutConfig().sink
        self.continue_stream(stream, (kept_from + RECENT - BLOCK) // BLOCK, draw)
        return stream

    def continue_stream(self, stream: VideoStream, blocks: int, draw: random.Random) -> None:
        """Let a stream go on. The sink of a stream without a switch is written anew: the network has changed."""
        texts, noise = self.read_prompts(stream.pattern, stream.chosen), seed_rollout(draw, len(stream.chosen))
        if not stream.pattern:
            stream.rollout.clean_pass(0, stream.latents[:, :BLOCK], texts[0])
        for start in range(stream.end, stream.end + blocks * BLOCK, BLOCK):
            text = texts[sum(frame <= start for frame in stream.pattern)]
            if start in stream.pattern:
                stream.rollout.recache(start, stream.latents, text)
            stream.add(extend_rollout(stream.rollout, start, text, noise))

    def state(self) -> Tensors:
        streams = {str(i): stream.state() for i, stream in enumerate(self.streams)}
        return super().state() | join_states({"streams": join_states(streams)})

    def restore(self, state: Tensors, num_steps: int) -> None:
        super().restore(state, num_steps)
        self.streams = []
        while found := select_state(state, f"streams.{len(self.streams)}"):
            self.streams.append(self.restore_stream(found))

    def restore_stream(self, state: Tensors) -> VideoStream:
        """Undo `VideoStream.state`."""
        pattern, positions, until, end, *chosen = state["facts"].tolist()
        config = RolloutConfig(positions=list(Positions)[positions])
        rollout = start_rollout(self.wan, config, len(chosen))
        for i, layer in enumerate(rollout.cache.layers):
            for j, tensor in enumerate(layer.tensors):
                tensor.copy_(state[f"cache.{i}.{j}"])
        return VideoStream(PATTERNS[pattern], chosen, until, rollout, end, state["latents"], state["shifts"])
