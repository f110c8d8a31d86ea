"""Replays of the reference's recorded training runs, with the classes that tune (`verify.py` compares the numbers)."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..config import RolloutConfig
from ..model.vae import WanVAE
from ..model.wan import Geometry, WanModel
from ..rollout.rollout import Pass, PassKind
from ..tuning.config import StreamConfig
from ..tuning.dmd import ClipNoise, Score, ScoredClip, compute_critic_loss, compute_student_loss
from ..tuning.graph_cache import CachedFrame, GraphPass
from ..tuning.streaming import Codec, Stream
from ..tuning.student import Student
from ..weights.weights_file import read_weights_file
from .recorded_run import RecordedRun, compute_statistic, stack_rows, unwarp_steps


def replay_scores(run: RecordedRun) -> dict[str, Tensor]:
    """Replay the teacher on clips of several lengths. The reference pads short ones and masks the padding."""
    teacher, results = load_score(run, "weights", run.meta["prefix"]), {}
    for frames in run.read_values("frames"):
        noisy, timesteps = run.tensors[f"in.x.{frames}"], run.tensors[f"in.t.{frames}"][:, 0]
        results[f"out.flow.{frames}"] = teacher.compute_flow(noisy, timesteps, run.tensors["in.ctx"])
        results[f"out.x0.{frames}"] = teacher(noisy, timesteps, run.tensors["in.ctx"])
    return results


def replay_dmd_loss(run: RecordedRun) -> dict[str, Tensor]:
    """Replay the student's loss on one clip: all of its frames, and only some."""
    teacher, critic = (load_score(run, "weights", f"{name}_score.") for name in ("real", "fake"))
    clip_noise = ClipNoise.of_index(run.tensors["rng.index"], run.tensors["rng.eps"], RolloutConfig().shift)
    frames = run.tensors["in.x"].shape[1]
    results = {"out.timestep": clip_noise.timesteps_B[:, None].expand(-1, frames)}
    masks = {"nomask": torch.ones(frames, dtype=torch.bool), "mask": run.tensors["in.mask_frames"][0].bool()}
    for name, is_new in masks.items():
        latents = run.tensors["in.x"].clone().requires_grad_()
        clip = ScoredClip(latents, is_new, run.tensors["in.ctx"])
        guidance = float(run.meta["guidance"])
        unprompted = run.tensors["in.uncond"]
        loss, distance = compute_student_loss(teacher, critic, clip, unprompted, clip_noise, guidance=guidance)
        loss.backward()
        assert latents.grad is not None
        results |= {f"out.{name}.loss": loss.detach(), f"out.{name}.dx": latents.grad, f"out.{name}.abs_grad": distance}
    return results


def replay_streaming(run: RecordedRun) -> dict[str, Tensor]:
    """Replay consecutive chunks of one video, generator and critic in turn, with a switch."""
    replay = _StreamingReplay(run)
    for step, facts in enumerate(run.read_values("steps")):
        replay.make_chunk(step, facts["network"])
    return replay.finish()


@dataclass(frozen=True, slots=True)
class _RecordedDraws:
    """The draws of a recorded chunk."""

    exit_step: int
    initial: Tensor  # [B, F, C, H, W]
    draws: Tensor  # [blocks, exit step + 1, B, F, C, H, W]

    def draw_noise(self, block: int, step: int) -> Tensor:
        frames = self.draws.shape[3]
        return self.draws[block, step - 1] if step else self.initial[:, block * frames : (block + 1) * frames]

    def draw_context_noise(self, block: int) -> Tensor:
        return self.draws[block, -1]


class _TracedStudent(Student):
    """A student that adds each of its passes to a trace."""

    def __init__(self, tree: WanModel, config: RolloutConfig, trace: "_Trace", **options) -> None:
        super().__init__(tree, config, **options)
        self.trace = trace

    def _pass(self, *args, **kwargs) -> tuple[Pass, GraphPass]:
        done, graph_pass = super()._pass(*args, **kwargs)
        self.trace.add(done, [layer.frames for layer in graph_pass.layers])
        return done, graph_pass


class _Trace:
    """The passes as rows of a recorded trace.

    A row holds statistics of what the reference's cache would hold: the sink and more recent frames than are attended.
    """

    def __init__(self, num_layers: int, sink: int, frames: int, tokens: int) -> None:
        self.sink, self.frames, self.tokens = sink, frames, tokens
        self.layers: list[dict[int, CachedFrame]] = [{} for _ in range(num_layers)]
        self.segment = 0
        self.rows: dict[str, list] = {}

    def add(self, done: Pass, frames: list[list[CachedFrame]]) -> None:
        end = done.place.start + done.place.frames
        row: dict[str, object] = {
            "kind": done.kind.value,
            "segment": self.segment,
            "num_frames": done.place.frames,
            "timestep": done.timesteps[0],
            "current_start": done.place.start * self.tokens,
            "gend": end * self.tokens,
            "lend": min(end, self.frames) * self.tokens,
            "flag": 0,
            "flow": compute_statistic(detach(done.flow)),
            "x0": compute_statistic(detach(done.clean)),
        }
        for i, new in enumerate(frames):
            layer = self.layers[i]
            if done.kind is PassKind.RECACHE:
                layer.update({frame: old.zeroed() for frame, old in layer.items()})
            layer.update({done.place.start + offset: frame for offset, frame in enumerate(new)})
            k, v = self.read_cache(i, end)
            row |= {f"k.{i}": compute_statistic(k), f"v.{i}": compute_statistic(v)}
        for name, value in row.items():
            self.rows.setdefault(name, []).append(value)

    def read_cache(self, layer: int, end: int) -> tuple[Tensor, Tensor]:
        """Return a layer's keys and values in temporal order."""
        kept = [*range(min(self.sink, end)), *range(max(self.sink, end - self.frames + self.sink), end)]
        frames = [self.layers[layer][frame] for frame in kept]
        k, v = (torch.cat(parts, dim=1).detach() for parts in zip(*((f.turned_k, f.v) for f in frames), strict=True))
        return k, v

    def take_columns(self) -> dict[str, Tensor]:
        """Return the rows so far as columns, and start again without rows."""
        columns, self.rows = stack_rows(self.rows), {}
        return columns


class _StreamingReplay:
    """The replay of a recorded training run."""

    def __init__(self, run: RecordedRun) -> None:
        self.run = run
        geometry = run.read_geometry()
        tree = build_trainable(read_weights_file(run.find_beside("weights")).tensors, geometry)
        self.trace = _Trace(
            geometry["num_layers"],
            run.read_number("sink"),
            run.read_number("cache_frames"),
            geometry["tokens_per_frame"],
        )
        shift = float(run.meta["generator_shift"])
        config = RolloutConfig(
            window=run.read_number("window"),
            sink=run.read_number("sink"),
            block=run.read_number("block"),
            steps=unwarp_steps(run, shift),
            shift=shift,
        )
        frames = run.read_number("cache_frames")
        student = _TracedStudent(tree, config, self.trace, kv_gradients=True, reference_frames=frames)
        self.teacher, self.critic = (load_score(run, "score_weights", f"{n}_score.") for n in ("real", "fake"))
        vae = WanVAE.of_weights(RecordedRun.open(run.find_beside("vae_weights")).select(run.meta["vae_prefix"]))
        stream = StreamConfig(length=run.read_number("max_length"), reference_behaviour=True)
        self.stream = Stream(student, Codec.of_vae(vae), stream)
        self.videos = self.stream.begin((0,), run.read_number("switch_frame"))
        self.results: dict[str, Tensor] = {}

    def make_chunk(self, step: int, network: str) -> None:
        """Make one chunk, its loss, and the gradients of the network that trains on it."""
        of_step = self.run.select(f"rng.step{step}.")
        draws = _RecordedDraws(int(of_step["exits"][0]), of_step["noise"], of_step["draws"])
        self.trace.segment = int(self.videos.is_switched)
        prompt = self.run.tensors["in.switch_ctx" if self.videos.is_switched else "in.ctx"]
        is_generator = network == "generator"
        with torch.set_grad_enabled(is_generator):
            clip, self.videos = self.stream.make_chunk(self.videos, prompt, draws)
        clip_noise = ClipNoise.of_index(of_step["index"], of_step["eps"], self.stream.student.config.shift)
        if is_generator:
            loss, _ = compute_student_loss(
                self.teacher,
                self.critic,
                clip,
                self.run.tensors["in.uncond"],
                clip_noise,
                guidance=float(self.run.meta["guidance"]),
            )
        else:
            loss = compute_critic_loss(self.critic, clip, clip_noise)
        loss.backward()
        trained = self.stream.student.tree if is_generator else self.critic.tree
        self.results |= {f"grad.step{step}.{name}": gradient for name, gradient in take_gradients(trained).items()}
        self.results |= {
            f"out.step{step}.clip": clip.latents_BFCHW.detach(),
            f"out.step{step}.loss": loss.detach(),
            f"out.step{step}.mask_frames": clip.is_new_F.long()[None],
        }
        self.results |= {f"trace.step{step}.{name}": column for name, column in self.trace.take_columns().items()}

    def finish(self) -> dict[str, Tensor]:
        """Return all results, with the cache at the end."""
        for layer in range(len(self.trace.layers)):
            k, v = self.trace.read_cache(layer, self.videos.length)
            self.results |= {f"out.k.{layer}": k, f"out.v.{layer}": v}
        return self.results


def take_gradients(module: nn.Module) -> dict[str, Tensor]:
    """Return the gradients by name and clear them."""
    gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    return gradients


def detach(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.detach()


def load_score(run: RecordedRun, name: str, prefix: str) -> Score:
    """Load a score network: the tensors that start with `prefix`, in the file that a run names as `name`."""
    weights = read_weights_file(run.find_beside(name)).tensors
    own = {name.removeprefix(prefix): x for name, x in weights.items() if name.startswith(prefix)}
    return Score(build_trainable(own, run.read_geometry()))


def build_trainable(weights: Mapping[str, Tensor], geometry: Mapping[str, int]) -> WanModel:
    """Build a network with gradients from recorded weights."""
    sizes = Geometry.of_weights(weights, num_heads=geometry["num_heads"], text_len=geometry["text_len"])
    tree = WanModel(sizes)
    tree.load_state_dict(weights)
    return tree
