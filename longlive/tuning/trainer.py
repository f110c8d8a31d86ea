"""Trains a student and its critic on the student's own growing videos (LongLive Alg. 1).

Every step trains the critic on a chunk; one in `ratio` steps trains the student on a chunk first. Both continue the
same videos: what the one makes, the other continues.

Dimension key: B videos, F frames, C channels, H rows and W columns of cells, L rows and D width of a prompt embedding.
"""

import contextlib
import random
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from ..errors import TuningError
from .adapter import add_adapters, find_trainable
from .config import TuneConfig
from .dmd import Score, ScoredClip, compute_critic_loss, compute_student_loss
from .draws import ChunkDraws
from .optimizer_state import Tensors, join_states, read_optimizer_state, restore_optimizer, select_state
from .parts import TuningParts, stack_embeddings
from .prompt_pairs import shuffle
from .streaming import Stream, VideoBatch
from .student import Student

if TYPE_CHECKING:
    from accelerate import Accelerator

LossAndMetrics = tuple[Tensor, dict[str, Tensor]]


class Trainer:
    """Student, critic and teacher, their optimizers, and the videos in progress.

    A step consists of `accumulation` micro-batches. Each has its own videos.
    """

    def __init__(self, parts: TuningParts, config: TuneConfig, accelerator: "Accelerator") -> None:
        learn = config.learn
        self.parts, self.config, self.accelerator = parts, config, accelerator
        self.num_steps = self.num_chunks = self.num_batches = 0
        device = accelerator.device
        for tree in (parts.student, parts.critic):
            add_adapters(tree, learn.rank, learn.alpha, seed=config.run.seed)
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
        self.batches: list[VideoBatch | None] = [None] * learn.accumulation

        options = {"betas": learn.betas, "weight_decay": learn.weight_decay}
        prepared = accelerator.prepare(
            self.student,
            self.critic,
            torch.optim.AdamW(find_trainable(parts.student).values(), lr=learn.rate, **options),
            torch.optim.AdamW(find_trainable(parts.critic).values(), lr=learn.critic_rate, **options),
        )
        self.wrapped_student, self.wrapped_critic, self.student_optimizer, self.critic_optimizer = prepared
        self.average: Tensors = {}

    def step(self) -> dict[str, float]:
        """Take one step and return its metrics.

        Raises TuningError when memory runs out, and for a loss or gradient that is NaN or infinite, before the
        optimizer uses it.
        """
        metrics = {}
        try:
            with self.accelerator.autocast():
                if self.num_steps % self.config.learn.ratio == 0:
                    metrics |= self._optimize(
                        "student", self._compute_student_loss, self.wrapped_student, self.student_optimizer
                    )
                    self._update_average()
                metrics |= self._optimize(
                    "critic", self._compute_critic_loss, self.wrapped_critic, self.critic_optimizer
                )
        except torch.OutOfMemoryError as error:
            raise TuningError(
                f"out of memory at step {self.num_steps + 1}; {self._suggest_saving()}begin another tuning with a "
                f"smaller batch, rank or video size (try them in this order)"
            ) from error
        self.num_steps += 1
        return metrics

    def _suggest_saving(self) -> str:
        """Name the settings that save memory and may still change in this tuning."""
        settings = {"checkpointing": self.config.learn.checkpointing, "offload": self.config.run.offload}
        unused = [name for name, is_on in settings.items() if not is_on]
        return f"set {' and '.join(unused)} to true and continue, or " if unused else ""

    def _optimize(
        self,
        name: str,
        compute_loss: Callable[[int], LossAndMetrics],
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
    ) -> dict[str, float]:
        """Update a network by the mean gradient over the micro-batches; return the mean metrics."""
        count, metrics = self.config.learn.accumulation, []
        for micro_batch in range(count):
            is_last = micro_batch == count - 1
            with contextlib.nullcontext() if is_last else self.accelerator.no_sync(module):
                loss, others = compute_loss(micro_batch)
                found = {name: loss.detach(), **others}
                metrics.append({key: self._average_over_processes(value) for key, value in found.items()})
                self._refuse_nan(f"the {name}'s loss", metrics[-1][name])
                self.accelerator.backward(loss.float() / count)
        norm = self.accelerator.clip_grad_norm_(find_trainable(module).values(), self.config.learn.largest_norm)
        norm = float(cast(Tensor, norm))
        self._refuse_nan(f"the norm of the {name}'s gradient", norm)
        optimizer.step()
        optimizer.zero_grad()
        means = {key: sum(found[key] for found in metrics) / count for key in metrics[0]}
        return means | {f"{name}_norm": norm}

    def _compute_student_loss(self, micro_batch: int) -> LossAndMetrics:
        clip, draws = self._make_chunk(micro_batch, with_graph=True)
        with self._move_teacher():
            unprompted = stack_embeddings([self.parts.unprompted] * self.config.learn.batch).to(clip.latents_BFCHW)
            loss, distance = compute_student_loss(
                self.teacher,
                self.critic,
                clip,
                unprompted,
                draws.draw_clip_noise(clip.latents_BFCHW),
                guidance=self.config.learn.guidance,
            )
        return loss, {"distance": distance}

    def _compute_critic_loss(self, micro_batch: int) -> LossAndMetrics:
        clip, draws = self._make_chunk(micro_batch, with_graph=False)
        return compute_critic_loss(self.wrapped_critic, clip, draws.draw_clip_noise(clip.latents_BFCHW)), {}

    def _make_chunk(self, micro_batch: int, *, with_graph: bool) -> tuple[ScoredClip, ChunkDraws]:
        """Make the next chunk of a micro-batch's videos, or the first chunk of new videos."""
        videos = self.batches[micro_batch]
        if videos is None or self.stream.is_over(videos):
            videos = self._begin_videos()
        pairs = [self.parts.pairs[number] for number in videos.pairs]
        prompts = [pair.second if videos.is_switched else pair.first for pair in pairs]
        embedding = stack_embeddings(prompts).to(self.accelerator.device)
        draws = ChunkDraws(
            self.config.run.seed,
            self.num_chunks,
            tuple(self._places),
            (self.config.rollout.block, *self.parts.shape_CHW),
            len(self.config.rollout.steps),
            self.config.rollout.shift,
        )
        with torch.set_grad_enabled(with_graph):
            clip, self.batches[micro_batch] = self.stream.make_chunk(
                videos, embedding, draws, self.wrapped_student if with_graph else None
            )
        self.num_chunks += 1
        return clip, draws

    def _begin_videos(self) -> VideoBatch:
        """Begin videos with the next prompt pairs in the shuffled order, and draw the frame where they switch.

        The videos of all processes switch together, unless no prompt of them changes.
        """
        count, everywhere = len(self.parts.pairs), self.config.learn.batch * self.accelerator.num_processes
        numbers = range(self.num_batches * everywhere, (self.num_batches + 1) * everywhere)
        pairs = [shuffle(count, self.config.run.seed, number // count)[number % count] for number in numbers]
        has_switch = any(not torch.equal(pair.first, pair.second) for pair in map(self.parts.pairs.__getitem__, pairs))
        switches = self.config.stream.switches if has_switch else ()
        draw = random.Random(f"switch {self.config.run.seed} {self.num_batches}")  # noqa: S311 (counted, no secret)
        self.num_batches += 1
        own = tuple(pairs[place] for place in self._places)
        return self.stream.begin(own, draw.choice(switches) if switches else None)

    @property
    def _places(self) -> range:
        """The places of this process's videos in the batch of all processes."""
        batch = self.config.learn.batch
        return range(self.accelerator.process_index * batch, (self.accelerator.process_index + 1) * batch)

    @contextlib.contextmanager
    def _move_teacher(self) -> Iterator[None]:
        """Move an offloaded teacher to the student's device until the block ends."""
        if not self.config.run.offload:
            yield
            return
        self.teacher.to(self.accelerator.device)
        self.teacher.wan = type(self.teacher.wan).of_tree(self.parts.teacher)
        try:
            yield
        finally:
            self.teacher.to("cpu")

    def _average_over_processes(self, value: Tensor) -> float:
        return float(cast(Tensor, self.accelerator.reduce(value.float(), "mean")))

    def _refuse_nan(self, what: str, value: float) -> None:
        if value - value != 0:  # NaN or infinite
            raise TuningError(
                f"{what} is {value} at step {self.num_steps + 1}; the last checkpoint and its adapter are good: "
                f"lower the rates and tune in another folder"
            )

    @torch.no_grad()
    def _update_average(self) -> None:
        learn = self.config.learn
        if not learn.average or self.num_steps < learn.average_from:
            return
        for name, weight in find_trainable(self.parts.student).items():
            if name in self.average:
                self.average[name].lerp_(weight.float(), 1 - learn.average)
            else:
                self.average[name] = weight.float().clone()

    @property
    def tuned_weights(self) -> Tensors:
        """The student's trainable weights by name, averaged if the configuration asks for it."""
        return self.average or detach_trainable(self.parts.student)

    def state_dict(self) -> Tensors:
        """Return the state that all processes share."""
        return join_states(
            {
                "student": detach_trainable(self.parts.student),
                "critic": detach_trainable(self.parts.critic),
                "student_optimizer": read_optimizer_state(self.student_optimizer),
                "critic_optimizer": read_optimizer_state(self.critic_optimizer),
                "average": self.average,
                "counts": {"": torch.tensor([self.num_steps, self.num_chunks, self.num_batches])},
            }
        )

    @torch.no_grad()
    def load_state_dict(self, state: Tensors) -> None:
        for name, tree in (("student", self.parts.student), ("critic", self.parts.critic)):
            saved = select_state(state, name)
            for key, weight in find_trainable(tree).items():
                weight.copy_(saved[key])
        restore_optimizer(self.student_optimizer, select_state(state, "student_optimizer"))
        restore_optimizer(self.critic_optimizer, select_state(state, "critic_optimizer"))
        device = self.accelerator.device
        self.average = {name: weight.to(device) for name, weight in select_state(state, "average").items()}
        self.num_steps, self.num_chunks, self.num_batches = select_state(state, "counts")[""].tolist()

    def videos_state_dict(self) -> Tensors:
        """Return the videos in progress in this process."""
        begun = {str(i): videos for i, videos in enumerate(self.batches) if videos is not None and videos.length}
        return join_states({name: videos.to_tensors() for name, videos in begun.items()})

    def load_videos_state_dict(self, state: Tensors) -> None:
        num_layers, device = self.student.wan.geometry.num_layers, self.accelerator.device
        for i in range(len(self.batches)):
            saved = {name: value.to(device) for name, value in select_state(state, str(i)).items()}
            if saved:
                self.batches[i] = VideoBatch.of_tensors(saved, num_layers)


def detach_trainable(tree: nn.Module) -> Tensors:
    return {name: weight.detach() for name, weight in find_trainable(tree).items()}
