"""Replays of the reference's recorded training, through the classes that tune (`longlive/verify.py` compares)."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..config import RolloutConfig
from ..model.vae import WanVAE
from ..model.wan import Geometry, WanModel
from ..model.weights import read
from ..recorded import Run, plain_steps, statistic, traced
from ..rollout import Pass, PassKind
from .config import StreamConfig
from .dmd import Judged, Noising, Score, critic_loss, student_loss
from .memory import Call, Frame
from .stream import Codec, Stream
from .student import Student


def scores(run: Run) -> dict[str, Tensor]:
    """The teacher on clips of several lengths; what pads a clip is masked in the reference and not there in ours."""
    teacher, found = score_of(run, "weights", run.meta["prefix"]), {}
    for frames in run.values("frames"):
        noisy, timesteps = run.tensors[f"in.x.{frames}"], run.tensors[f"in.t.{frames}"][:, 0]
        found[f"out.flow.{frames}"] = teacher.flow(noisy, timesteps, run.tensors["in.ctx"])
        found[f"out.x0.{frames}"] = teacher(noisy, timesteps, run.tensors["in.ctx"])
    return found


def matching(run: Run) -> dict[str, Tensor]:
    """The student's loss on one clip, all of it and masked."""
    teacher, critic = (score_of(run, "weights", f"{name}_score.") for name in ("real", "fake"))
    noising = Noising.of(run.tensors["rng.index"], run.tensors["rng.eps"])
    frames = run.tensors["in.x"].shape[1]
    found = {"out.timestep": noising.timesteps_B[:, None].expand(-1, frames)}
    masks = {"nomask": torch.ones(frames, dtype=torch.bool), "mask": run.tensors["in.mask_frames"][0].bool()}
    for name, is_new in masks.items():
        clip = run.tensors["in.x"].clone().requires_grad_()
        judged = Judged(clip, is_new, run.tensors["in.ctx"])
        guidance = float(run.meta["guidance"])
        loss, distance = student_loss(teacher, critic, judged, run.tensors["in.uncond"], noising, guidance=guidance)
        loss.backward()
        assert clip.grad is not None
        found |= {f"out.{name}.loss": loss.detach(), f"out.{name}.dx": clip.grad, f"out.{name}.abs_grad": distance}
    return found


def streaming(run: Run) -> dict[str, Tensor]:
    """Consecutive chunks of one sequence, generator and critic in turn, with a switch."""
    replay = _Streaming(run)
    for step, facts in enumerate(run.values("steps")):
        replay.make(step, facts["network"])
    return replay.results()


@dataclass(frozen=True, slots=True)
class _RecordedDraws:
    """The draws of a recorded chunk."""

    exit_step: int
    initial: Tensor  # [B, F, C, H, W]
    draws: Tensor  # [blocks, exit step + 1, B, F, C, H, W]

    def noise(self, block: int, step: int) -> Tensor:
        frames = self.draws.shape[3]
        return self.draws[block, step - 1] if step else self.initial[:, block * frames : (block + 1) * frames]

    def context(self, block: int) -> Tensor:
        return self.draws[block, -1]


class _RecordedStudent(Student):
    """A student whose passes are told."""

    def __init__(self, tree: WanModel, config: RolloutConfig, trace: "_Trace", **options) -> None:
        super().__init__(tree, config, **options)
        self.trace = trace

    def _pass(self, *args, **kwargs) -> tuple[Pass, Call]:
        done, call = super()._pass(*args, **kwargs)
        self.trace.see(done, [layer.frames for layer in call.layers])
        return done, call


class _Trace:
    """What the reference's cache holds: the sink and the newest frames, more of them than are attended."""

    def __init__(self, num_layers: int, sink: int, frames: int, tokens: int) -> None:
        self.sink, self.frames, self.tokens = sink, frames, tokens
        self.layers: list[dict[int, Frame]] = [{} for _ in range(num_layers)]
        self.segment = 0
        self.rows: dict[str, list] = {}

    def see(self, done: Pass, frames: list[list[Frame]]) -> None:
        end = done.place.start + done.place.frames
        row: dict[str, object] = {
            "kind": done.kind.value,
            "segment": self.segment,
            "num_frames": done.place.frames,
            "timestep": done.timestep,
            "current_start": done.place.start * self.tokens,
            "gend": end * self.tokens,
            "lend": min(end, self.frames) * self.tokens,
            "flag": 0,
            "flow": statistic(detached(done.flow)),
            "x0": statistic(detached(done.clean)),
        }
        for i, new in enumerate(frames):
            layer = self.layers[i]
            if done.kind is PassKind.RECACHE:
                layer.update({frame: old.zeroed() for frame, old in layer.items()})
            layer.update({done.place.start + offset: frame for offset, frame in enumerate(new)})
            k, v = self.remembered(i, end)
            row |= {f"k.{i}": statistic(k), f"v.{i}": statistic(v)}
        for name, value in row.items():
            self.rows.setdefault(name, []).append(value)

    def remembered(self, layer: int, end: int) -> tuple[Tensor, Tensor]:
        """A layer's keys and values in the order of time."""
        kept = [*range(min(self.sink, end)), *range(max(self.sink, end - self.frames + self.sink), end)]
        frames = [self.layers[layer][frame] for frame in kept]
        k, v = (torch.cat(parts, dim=1).detach() for parts in zip(*((f.turned_k, f.v) for f in frames), strict=True))
        return k, v

    def ended(self) -> dict[str, Tensor]:
        """The columns so far, which begin anew."""
        found, self.rows = traced(self.rows), {}
        return found


class _Streaming:
    """A recorded training while it is replayed."""

    def __init__(self, run: Run) -> None:
        self.run = run
        geometry = run.geometry()
        tree = tree_of(read(run.beside("weights")).tensors, geometry)
        self.trace = _Trace(
            geometry["num_layers"], run.number("sink"), run.number("cache_frames"), geometry["tokens_per_frame"]
        )
        shift = float(run.meta["generator_shift"])
        config = RolloutConfig(
            window=run.number("window"),
            sink=run.number("sink"),
            block=run.number("block"),
            steps=plain_steps(run, shift),
            shift=shift,
        )
        frames = run.number("cache_frames")
        student = _RecordedStudent(tree, config, self.trace, kv_gradients=True, reference_frames=frames)
        self.teacher, self.critic = (score_of(run, "score_weights", f"{n}_score.") for n in ("real", "fake"))
        vae = WanVAE.of_weights(Run.open(run.beside("vae_weights")).group(run.meta["vae_prefix"]))
        stream = StreamConfig(length=run.number("max_length"), reference_behaviour=True)
        self.stream = Stream(student, Codec.of_vae(vae), stream)
        self.sequence = self.stream.begun((0,), run.number("switch_frame"))
        self.found: dict[str, Tensor] = {}

    def make(self, step: int, network: str) -> None:
        """One chunk, its loss and the gradients of the network that learns from it."""
        of_step = self.run.group(f"rng.step{step}.")
        draws = _RecordedDraws(int(of_step["exits"][0]), of_step["noise"], of_step["draws"])
        self.trace.segment = int(self.sequence.is_switched)
        prompt = self.run.tensors["in.switch_ctx" if self.sequence.is_switched else "in.ctx"]
        is_generator = network == "generator"
        with torch.set_grad_enabled(is_generator):
            judged, self.sequence = self.stream.chunk(self.sequence, prompt, draws)
        noising = Noising.of(of_step["index"], of_step["eps"])
        if is_generator:
            loss, _ = student_loss(
                self.teacher,
                self.critic,
                judged,
                self.run.tensors["in.uncond"],
                noising,
                guidance=float(self.run.meta["guidance"]),
            )
        else:
            loss = critic_loss(self.critic, judged, noising)
        loss.backward()
        learner = self.stream.student.tree if is_generator else self.critic.tree
        self.found |= {f"grad.step{step}.{name}": gradient for name, gradient in gradients(learner).items()}
        self.found |= {
            f"out.step{step}.clip": judged.clip_BFCHW.detach(),
            f"out.step{step}.loss": loss.detach(),
            f"out.step{step}.mask_frames": judged.is_new_F.long()[None],
        }
        self.found |= {f"trace.step{step}.{name}": column for name, column in self.trace.ended().items()}

    def results(self) -> dict[str, Tensor]:
        for layer in range(len(self.trace.layers)):
            k, v = self.trace.remembered(layer, self.sequence.length)
            self.found |= {f"out.k.{layer}": k, f"out.v.{layer}": v}
        return self.found


def gradients(module: nn.Module) -> dict[str, Tensor]:
    """By name; taken away."""
    found = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    return found


def detached(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.detach()


def score_of(run: Run, name: str, prefix: str) -> Score:
    """The network of the file that a run's metadata give under `name`, its tensors those that begin with `prefix`."""
    weights = read(run.beside(name)).tensors
    mine = {name.removeprefix(prefix): x for name, x in weights.items() if name.startswith(prefix)}
    return Score(tree_of(mine, run.geometry()))


def tree_of(weights: Mapping[str, Tensor], geometry: Mapping[str, int]) -> WanModel:
    """A network that learns, from recorded weights."""
    sizes = Geometry.of_weights(weights, num_heads=geometry["num_heads"], text_len=geometry["text_len"])
    tree = WanModel(sizes)
    tree.load_state_dict(weights)
    return tree
