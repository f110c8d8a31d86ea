"""A tuning in progress: student, critic and teacher, their optimizers, and the videos that grow (LongLive Alg. 1).

Every step the critic learns from a chunk; every few steps, before it, the student from one. Chunks are shared out in
order among them. Nothing is drawn from a running generator: chunk n of a seed sees the same noise in whichever process,
so a resumed tuning is the uninterrupted one.

Dimension key: B videos, F frames, C channels, H rows and W columns of cells, L rows and D width of a prompt embedding.
"""

import contextlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from ..config import MAX_STEP
from ..errors import DataError, TuningError
from ..model.wan import WanModel
from ..noise import normal
from ..resume import Tensors, joined, part, restore, state_of
from .adapter import adapt, learning
from .config import TuneConfig
from .data import order
from .dmd import Judged, Noising, Score, critic_loss, student_loss
from .memory import Memory
from .stream import Codec, Stream, Videos
from .student import Student

if TYPE_CHECKING:
    from accelerate import Accelerator

OF_CLIP = 2**32  # the place of a clip's noise, beyond all blocks
NO_SWITCH = -1


@dataclass(frozen=True, slots=True)
class EmbeddedPair:
    """A prompt pair as embeddings [L, D] on the CPU, without trailing zero rows."""

    first: Tensor
    second: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What is tuned, and with what. Student and critic are changed in place."""

    student: WanModel
    critic: WanModel
    teacher: WanModel
    codec: Codec
    pairs: Sequence[EmbeddedPair]
    unprompted: Tensor  # embedding [L, D]
    shape_CHW: tuple[int, int, int]  # of a frame

    def __post_init__(self) -> None:
        if not self.pairs:
            raise DataError("there are no prompts to tune on; give at least one")
        sizes = {(tree.in_dim, tree.out_dim, tree.patch_size) for tree in (self.student, self.critic, self.teacher)}
        if len(sizes) > 1:
            raise TuningError(
                f"the teacher works in another latent space: student, critic and teacher have channels and patches "
                f"{sorted(sizes)}; use a teacher of the same family (Wan2.1, 16 channels)"
            )
        widths = {tree.text_dim for tree in (self.student, self.critic, self.teacher)}
        if len(widths) > 1:
            raise TuningError(f"the networks read prompts of different widths, {sorted(widths)}; use one text encoder")


@dataclass(frozen=True, slots=True)
class ChunkDraws:
    """All that is random in a chunk, from its number and those of its videos alone."""

    seed: int
    chunk: int
    videos: tuple[int, ...]  # their places in the batch of all processes
    block_shape: tuple[int, int, int, int]  # F, C, H, W
    num_steps: int

    @property
    def exit_step(self) -> int:
        """The same in all processes, as the reference broadcasts it."""
        return random.Random(f"exit {self.seed} {self.chunk}").randrange(self.num_steps)  # noqa: S311 (counted, no secret)

    def noise(self, block: int, step: int) -> Tensor:
        return self._normal(block * (self.num_steps + 1) + step, self.block_shape)

    def context(self, block: int) -> Tensor:
        return self.noise(block, self.num_steps)

    def noising(self, clip_BFCHW: Tensor) -> Noising:
        """How noisy a clip is shown to the score networks; each video has a level of its own."""
        index = [random.Random(f"level {self.seed} {self.chunk} {video}").randrange(MAX_STEP) for video in self.videos]  # noqa: S311 (counted, no secret)
        noise = self._normal(OF_CLIP, tuple(clip_BFCHW.shape[1:]))
        return Noising.of(torch.tensor(index, device=clip_BFCHW.device), noise.to(clip_BFCHW))

    def _normal(self, place: int, shape: tuple[int, ...]) -> Tensor:
        return torch.stack([normal(self.seed, (video, place, self.chunk), shape) for video in self.videos])


class Tuning:
    """Networks that learn, step by step, from whatever `restore` brought back."""

    def __init__(self, parts: Parts, config: TuneConfig, accelerator: "Accelerator") -> None:
        learn = config.learn
        self.parts, self.config, self.accelerator = parts, config, accelerator
        self.num_steps = self.num_chunks = self.num_begun = 0
        device = accelerator.device
        for tree in (parts.student, parts.critic):
            adapt(tree, learn.rank, learn.alpha, seed=config.run.seed)
            tree.to(device)
        parts.teacher.requires_grad_(False).to("cpu" if config.run.offload else device)

        as_reference = config.stream.reference_behaviour
        self.student = Student(
            parts.student,
            config.rollout,
            kv_gradients=learn.kv_gradients or as_reference,
            checkpointing=learn.checkpointing,
            reference_frames=config.rollout.window + config.stream.clip if as_reference else None,
        )
        self.critic = Score(parts.critic, checkpointing=learn.checkpointing)
        self.teacher = Score(parts.teacher)
        self.stream = Stream(self.student, parts.codec, config.stream)
        self.sequences: list[Videos | None] = [None] * learn.accumulation

        options = {"betas": learn.betas, "weight_decay": learn.weight_decay}
        prepared = accelerator.prepare(
            self.student,
            self.critic,
            torch.optim.AdamW(learning(parts.student).values(), lr=learn.rate, **options),
            torch.optim.AdamW(learning(parts.critic).values(), lr=learn.critic_rate, **options),
        )
        self.rollout, self.wrapped_critic, self.student_optimizer, self.critic_optimizer = prepared
        self.average: Tensors = {}

    def step(self) -> dict[str, float]:
        """One step; its figures. Raises TuningError; what a loss that is no number would spoil is not stepped."""
        figures = {}
        try:
            with self.accelerator.autocast():
                if self.num_steps % self.config.learn.ratio == 0:
                    figures |= self._learnt("student", self._student_loss, self.rollout, self.student_optimizer)
                    self._averaged()
                figures |= self._learnt("critic", self._critic_loss, self.wrapped_critic, self.critic_optimizer)
        except torch.OutOfMemoryError as error:
            raise TuningError(
                f"out of memory at step {self.num_steps + 1}; set checkpointing and offload to true and go on, or, in "
                f"another folder, lower in this order: batch, rank, the size of the video"
            ) from error
        self.num_steps += 1
        return figures

    def _learnt(self, name: str, loss_of, module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, float]:
        """Follow the gradient of a loss over the batches of a step; its figures."""
        turns, figures = self.config.learn.accumulation, []
        for turn in range(turns):
            is_last = turn == turns - 1
            with contextlib.nullcontext() if is_last else self.accelerator.no_sync(module):
                loss, found = loss_of(turn)
                found = {name: loss.detach(), **found}
                figures.append({key: self._everywhere(value) for key, value in found.items()})
                self._refuse_nan(f"the {name}'s loss", figures[-1][name])
                self.accelerator.backward(loss.float() / turns)
        norm = self.accelerator.clip_grad_norm_(learning(module).values(), self.config.learn.largest_norm)
        norm = float(cast(Tensor, norm))
        self._refuse_nan(f"the norm of the {name}'s gradient", norm)
        optimizer.step()
        optimizer.zero_grad()
        means = {key: sum(found[key] for found in figures) / turns for key in figures[0]}
        return means | {f"{name}_norm": norm}

    def _student_loss(self, turn: int) -> tuple[Tensor, dict[str, Tensor]]:
        judged, draws = self._chunk(turn, with_graph=True)
        with self._teacher_here():
            unprompted = stacked([self.parts.unprompted] * self.config.learn.batch).to(judged.clip_BFCHW)
            loss, distance = student_loss(
                self.teacher,
                self.critic,
                judged,
                unprompted,
                draws.noising(judged.clip_BFCHW),
                guidance=self.config.learn.guidance,
            )
        return loss, {"distance": distance}

    def _critic_loss(self, turn: int) -> tuple[Tensor, dict[str, Tensor]]:
        judged, draws = self._chunk(turn, with_graph=False)
        return critic_loss(self.wrapped_critic, judged, draws.noising(judged.clip_BFCHW)), {}

    def _chunk(self, turn: int, *, with_graph: bool) -> tuple[Judged, ChunkDraws]:
        """The next chunk of a sequence, or the first of a new one."""
        sequence = self.sequences[turn]
        if sequence is None or self.stream.is_over(sequence):
            sequence = self._begun()
        pairs = [self.parts.pairs[number] for number in sequence.pairs]
        prompts = [pair.second if sequence.is_switched else pair.first for pair in pairs]
        embedding = stacked(prompts).to(self.accelerator.device)
        draws = ChunkDraws(
            self.config.run.seed,
            self.num_chunks,
            tuple(self._places()),
            (self.config.rollout.block, *self.parts.shape_CHW),
            len(self.config.rollout.steps),
        )
        with torch.set_grad_enabled(with_graph):
            judged, self.sequences[turn] = self.stream.chunk(
                sequence, embedding, draws, self.rollout if with_graph else None
            )
        self.num_chunks += 1
        return judged, draws

    def _begun(self) -> Videos:
        """New videos: the next prompt pairs in their shuffled order, and a frame to switch at."""
        count, everywhere = len(self.parts.pairs), self.config.learn.batch * self.accelerator.num_processes
        numbers = [self.num_begun * everywhere + place for place in self._places()]
        pairs = [order(count, self.config.run.seed, number // count)[number % count] for number in numbers]
        halves = [(self.parts.pairs[pair].first, self.parts.pairs[pair].second) for pair in pairs]
        is_switching = any(not torch.equal(first, second) for first, second in halves)
        switches = self.config.stream.switches if is_switching else ()
        draw = random.Random(f"switch {self.config.run.seed} {self.num_begun}")  # noqa: S311 (counted, no secret)
        self.num_begun += 1
        return self.stream.begun(tuple(pairs), draw.choice(switches) if switches else None)

    def _places(self) -> range:
        """Of this process's videos in the batch of all processes."""
        batch = self.config.learn.batch
        return range(self.accelerator.process_index * batch, (self.accelerator.process_index + 1) * batch)

    @contextlib.contextmanager
    def _teacher_here(self) -> Iterator[None]:
        """The teacher beside the student, while it is needed."""
        if not self.config.run.offload:
            yield
            return
        self.teacher.to(self.accelerator.device)
        self.teacher.wan = type(self.teacher.wan).of_tree(self.parts.teacher)
        try:
            yield
        finally:
            self.teacher.to("cpu")

    def _everywhere(self, value: Tensor) -> float:
        """The mean over all processes."""
        return float(cast(Tensor, self.accelerator.reduce(value.float(), "mean")))

    def _refuse_nan(self, what: str, value: float) -> None:
        if value - value != 0:
            raise TuningError(
                f"{what} is {value} at step {self.num_steps + 1}; the last checkpoint is good, and so is its adapter: "
                f"to learn on, lower the rates and tune in another folder"
            )

    @torch.no_grad()
    def _averaged(self) -> None:
        learn = self.config.learn
        if not learn.average or self.num_steps < learn.average_from:
            return
        for name, weight in learning(self.parts.student).items():
            if name in self.average:
                self.average[name].lerp_(weight.float(), 1 - learn.average)
            else:
                self.average[name] = weight.float().clone()

    def learnt(self) -> Tensors:
        """The student's weights that learn, by name: their average where there is one."""
        return self.average or {name: weight.detach() for name, weight in learning(self.parts.student).items()}

    def state(self) -> Tensors:
        """What all processes have in common."""
        return joined(
            {
                "student": {name: weight.detach() for name, weight in learning(self.parts.student).items()},
                "critic": {name: weight.detach() for name, weight in learning(self.parts.critic).items()},
                "student_optimizer": state_of(self.student_optimizer),
                "critic_optimizer": state_of(self.critic_optimizer),
                "average": self.average,
                "counts": {"": torch.tensor([self.num_steps, self.num_chunks, self.num_begun])},
            }
        )

    @torch.no_grad()
    def restore(self, state: Tensors) -> None:
        for name, tree in (("student", self.parts.student), ("critic", self.parts.critic)):
            saved = part(state, name)
            for key, weight in learning(tree).items():
                weight.copy_(saved[key])
        restore(self.student_optimizer, part(state, "student_optimizer"))
        restore(self.critic_optimizer, part(state, "critic_optimizer"))
        device = self.accelerator.device
        self.average = {name: weight.to(device) for name, weight in part(state, "average").items()}
        self.num_steps, self.num_chunks, self.num_begun = part(state, "counts")[""].tolist()

    def videos(self) -> Tensors:
        """The videos that grow in this process."""
        found = {}
        for turn, sequence in enumerate(self.sequences):
            if sequence is None or sequence.previous is None:
                continue
            switch = NO_SWITCH if sequence.switch is None else sequence.switch
            found |= joined(
                {
                    f"{turn}": {
                        "facts": torch.tensor([sequence.length, switch, *sequence.pairs]),
                        "previous": sequence.previous,
                        **joined({"memory": sequence.memory.tensors()}),
                    }
                }
            )
        return found

    def restore_videos(self, state: Tensors) -> None:
        layers, device = self.student.wan.geometry.num_layers, self.accelerator.device
        for turn in range(len(self.sequences)):
            saved = {name: value.to(device) for name, value in part(state, f"{turn}").items()}
            if saved:
                length, switch, *pairs = saved["facts"].tolist()
                memory = Memory.of_tensors(part(saved, "memory"), layers)
                self.sequences[turn] = Videos(
                    tuple(pairs), None if switch == NO_SWITCH else switch, memory, length, saved["previous"]
                )


def stacked(embeddings: list[Tensor]) -> Tensor:
    """One batch [B, L, D] of embeddings of different lengths; rows of zeros are what a shorter prompt has anyway."""
    rows = max(len(embedding) for embedding in embeddings)
    return torch.stack([nn.functional.pad(embedding, (0, 0, 0, rows - len(embedding))) for embedding in embeddings])
