"""A tuning inside ComfyUI: from the inputs of LongLive Tuner to a LoRA, a loss curve and a sample."""

import gc
import hashlib
import json
import shutil
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import comfy.model_management
import comfy.utils
import numpy as np
import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import VAE
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from ...longlive.config import RolloutConfig
from ...longlive.digest import hash_tensors
from ...longlive.errors import TuningError
from ...longlive.files import atomic_write
from ...longlive.tuning.accelerator import make_accelerator
from ...longlive.tuning.adapter import import_peft
from ...longlive.tuning.config import (
    DataConfig,
    LearnConfig,
    ModelConfig,
    Precision,
    RunConfig,
    StreamConfig,
    TuneConfig,
)
from ...longlive.tuning.load import compute_frame_shape
from ...longlive.tuning.metrics_log import MetricsLog
from ...longlive.tuning.parts import EmbeddedPair, TuningParts
from ...longlive.tuning.run import ADAPTER_FILE, METRICS_FILE, STEPS_KEY, run_tuning
from ...longlive.tuning.sample import render_sample
from ...longlive.tuning.trainer import Trainer
from ...longlive.video.writer import VideoWriter
from ...longlive.weights.tensor_file import read_metadata
from . import paths
from .conditioning import Pairs, check_embedding_width
from .identity import hash_model
from .loss_chart import draw_chart
from .model import check_copyable, check_size, copy_network, use_device
from .tuning_codec import create_codec
from .vae import refuse_other_vaes

SHORT_DIGITS = 12  # hex digits, enough to tell apart what one person has
CHART_INTERVAL = 5  # steps between two charts of the losses
PREVIEW_SIZE = 720
NETWORK_DTYPES = {Precision.HALF: torch.bfloat16, Precision.FULL: torch.float32}
# What a message calls a MODEL, and how it says to replace it.
STUDENT_WORDS = ("the student", "connect the model that you would connect to LongLive Session")
TEACHER_WORDS = (
    "the teacher",
    "connect a Wan2.1 text-to-video model, such as wan2.1_t2v_14B, or the miniature's teacher",
)


@dataclass(frozen=True, kw_only=True)
class Models:
    """The models of a tuning, as ComfyUI loaded them. None of them is modified."""

    student: ModelPatcher
    teacher: ModelPatcher
    vae: VAE

    def check(self, width: int, height: int, pairs: Pairs) -> None:
        """Raise WeightsError, ConditioningError or ConfigError for models that cannot be tuned with."""
        for patcher, words in ((self.student, STUDENT_WORDS), (self.teacher, TEACHER_WORDS)):
            check_copyable(patcher, *words)
            check_embedding_width(pairs.unprompted, patcher)
        refuse_other_vaes(self.vae)
        check_size(self.student, width, height)

    @property
    def device(self) -> torch.device:
        return self.student.load_device


@dataclass(frozen=True, kw_only=True)
class TuningSettings:
    """The settings of LongLive Tuner, under the names of its inputs."""

    steps: int
    rank: int
    rate: float
    critic_rate: float
    ratio: int
    length: int  # latent frames
    batch: int
    width: int
    height: int
    seed: int
    guidance: float
    anchored_on: int  # latent frames
    rollout: RolloutConfig

    def to_config(self, models: Models, pairs: Pairs) -> TuneConfig:
        """Make the configuration of a tuning. It names models and pairs by their hashes. Raises ConfigError."""
        on_cpu = models.device.type == "cpu"
        is_full = models.student.model.get_dtype_inference() == torch.float32
        texts = json.dumps([pairs.negative, *([pair.first, pair.second] for pair in pairs.texts)])
        return TuneConfig(
            model=ModelConfig(
                weights=f"MODEL {shorten_hash(hash_model(models.student))}",
                teacher=f"MODEL {shorten_hash(hash_model(models.teacher))}",
                pipeline=f"VAE {shorten_hash(hash_tensors(models.vae.get_sd()))}",
            ),
            data=DataConfig(
                prompts=f"{len(pairs.texts)} pairs {shorten_hash(texts)}",
                negative=pairs.negative,
                width=self.width,
                height=self.height,
            ),
            rollout=self.rollout,
            stream=StreamConfig(length=self.length, anchored_on=self.anchored_on),
            learn=LearnConfig(
                rank=self.rank,
                alpha=float(self.rank),
                rate=self.rate,
                critic_rate=self.critic_rate,
                ratio=self.ratio,
                guidance=self.guidance,
                batch=self.batch,
                checkpointing=not on_cpu,
                precision=Precision.FULL if is_full else Precision.HALF,
            ),
            run=RunConfig(steps=self.steps, seed=self.seed, offload=not on_cpu),
        )


class TuningJob:
    """One tuning and its files. The constructor raises a LongLiveError for inputs that cannot be tuned with."""

    def __init__(self, models: Models, pairs: Pairs, name: str, settings: TuningSettings) -> None:
        models.check(settings.width, settings.height, pairs)
        self.lora_file = paths.find_lora_path(name)
        refuse_to_replace(self.lora_file)
        import_peft()
        self.models, self.pairs, self.name = models, pairs, name.strip()
        self.config = settings.to_config(models, pairs)
        self.folder = paths.find_tuning_folder(name)
        self.sample_file = self.folder / f"sample-{settings.steps:06d}.mp4"

    @property
    def lora_name(self) -> str:
        """The LoRA's name, as LoRA loaders list it."""
        return str(self.lora_file.relative_to(paths.find_loras_folder()))

    @property
    def sample_folder(self) -> str:
        """The folder of the sample, below ComfyUI's output folder."""
        return str(self.folder.relative_to(paths.find_output_folder()))

    def run(self) -> None:
        """Tune or resume, make the sample, and save the LoRA. An interrupt between two steps loses nothing."""
        with reserve_memory(), torch.inference_mode(False), torch.enable_grad():
            self._tune()
        made = self.folder / ADAPTER_FILE
        try:
            with atomic_write(self.lora_file) as part:
                shutil.copyfile(made, part)
        except OSError as error:
            raise TuningError(
                f"{self.lora_file} cannot be written: {error}; free some space and queue again, or copy {made} there"
            ) from error

    def draw_curve(self) -> Image.Image:
        """Draw the loss curve so far."""
        figures, steps = MetricsLog(self.folder / METRICS_FILE).read(), self.config.run.steps
        done = int(figures[-1]["step"]) if figures else 0
        return draw_chart(figures, steps, f"{self.name}: {done} of {steps} steps")

    def draw_curve_image(self) -> Tensor:
        """Draw the loss curve so far as an IMAGE [1 H W 3], 0..1."""
        return torch.from_numpy(np.asarray(self.draw_curve(), dtype=np.float32) / 255)[None]

    def load_lora(self) -> dict[str, Tensor]:
        return load(self.lora_file.read_bytes())

    def _tune(self) -> None:
        device = self.models.device
        with use_device(device), open_accelerator(self.config, self.folder, device) as accelerator:
            trainer = Trainer(self._create_parts(), self.config, accelerator)
            run_tuning(trainer, self.folder, watch=TuningProgress(self))
            with VideoWriter(self.sample_file) as writer:
                for pixels in render_sample(trainer, seed=self.config.run.seed):
                    comfy.model_management.throw_exception_if_processing_interrupted()
                    writer.write(pixels)

    def _create_parts(self) -> TuningParts:
        dtype, models, data = NETWORK_DTYPES[self.config.learn.precision], self.models, self.config.data
        pairs = tuple(EmbeddedPair(pair.first.clone(), pair.second.clone()) for pair in self.pairs.embedded)
        return TuningParts(
            student=copy_network(models.student, dtype, *STUDENT_WORDS),
            critic=copy_network(models.teacher, dtype, *TEACHER_WORDS),
            teacher=copy_network(models.teacher, dtype, *TEACHER_WORDS),
            codec=create_codec(models.vae),
            pairs=pairs,
            unprompted=self.pairs.unprompted.clone(),
            shape_CHW=compute_frame_shape(data.height, data.width),
        )


class TuningProgress:
    """Reports each step to ComfyUI, sometimes with the loss curve, and obeys its interrupt."""

    def __init__(self, job: TuningJob) -> None:
        self.job, self.steps = job, job.config.run.steps
        self.bar = comfy.utils.ProgressBar(self.steps)

    def __call__(self, step: int, figures: dict[str, float]) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        is_shown = step % CHART_INTERVAL == 0 or step in (1, self.steps)
        self.bar.update_absolute(step, preview=("JPEG", self.job.draw_curve(), PREVIEW_SIZE) if is_shown else None)


@contextmanager
def reserve_memory() -> Iterator[None]:
    """Make room for something large that ComfyUI does not manage: unload its models before, free everything after.

    On an error, clear its traceback frames so that they do not keep tensors alive.
    """
    comfy.model_management.unload_all_models()
    comfy.model_management.soft_empty_cache()
    try:
        yield
    except BaseException as error:
        cause: BaseException | None = error
        while cause:
            traceback.clear_frames(cause.__traceback__)
            cause = cause.__cause__ or cause.__context__
        raise
    finally:
        gc.collect()
        comfy.model_management.soft_empty_cache()


@contextmanager
def open_accelerator(config: TuneConfig, folder: Path, device: torch.device) -> Iterator:
    """Open an accelerator of our own.

    `accelerate` has one state per process: that of other packs is set aside, and restored at the end. Raises
    TuningError if accelerate cannot be imported.
    """
    try:
        from accelerate.state import AcceleratorState, GradientState, PartialState
    except ImportError as error:
        raise TuningError(
            f"tuning needs accelerate, which cannot be imported ({error}); pip install peft accelerate"
        ) from error
    states = [state._shared_state for state in (AcceleratorState, GradientState, PartialState)]
    saved = [dict(state) for state in states]
    for state in states:
        state.clear()
    try:
        yield make_accelerator(config, folder, on_cpu=device.type == "cpu")
    finally:
        for state, before in zip(states, saved, strict=True):
            state.clear()
            state.update(before)


def refuse_to_replace(path: Path) -> None:
    """Refuse to replace a LoRA that no tuning made. Raises TuningError."""
    if not path.exists():
        return
    try:
        is_ours = STEPS_KEY in read_metadata(path)
    except (OSError, SafetensorError):
        is_ours = False
    if not is_ours:
        raise TuningError(f"{path} is a LoRA that was not made by LongLive Tuner; choose another name for yours")


def shorten_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:SHORT_DIGITS]
