"""Nodes of streaming long tuning: prompt pairs, and the tuner that makes an adapter (LongLive §3.2, Alg. 1)."""

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import comfy.model_management
import comfy.utils
import folder_paths
import numpy as np
import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import VAE
from comfy_api.latest import InputImpl, io, ui
from safetensors import SafetensorError, safe_open
from safetensors.torch import load

from ..longlive.config import SIZE_STEP, RolloutConfig
from ..longlive.curve import Curve
from ..longlive.digest import digest_of_tensors
from ..longlive.errors import DataError, LongLiveError, TuningError
from ..longlive.files import atomic_write, check_regular
from ..longlive.tune.adapter import peft
from ..longlive.tune.config import (
    DataConfig,
    LearnConfig,
    ModelConfig,
    Precision,
    RunConfig,
    StreamConfig,
    TuneConfig,
)
from ..longlive.tune.data import JSONL, PromptPair, parsed_pairs, read_pairs
from ..longlive.tune.load import shape_of
from ..longlive.tune.run import ADAPTER, CURVE, TUNED, accelerator_of, run, sample_of
from ..longlive.tune.tuning import EmbeddedPair, Parts, Tuning
from ..longlive.video import VideoWriter
from . import chart, host, paths
from .identity import model_digest
from .sockets import OptionsSocket, Pairs, PairsSocket
from .vae import refuse_other_vaes, tuning_codec

log = logging.getLogger(__name__)

CATEGORY = "LongLive/tuning"
SHORT = 12  # hex digits, enough to tell apart what one person has
MAX_TYPED = 200_000  # characters; they are read where the server answers everybody
MAX_FILE_BYTES = 16 << 20  # of pairs: some ten thousand, each of which is encoded and kept in memory
CURVE_EVERY = 5  # steps between two pictures of the curve
PREVIEW_SIZE = 720
DTYPES = {Precision.HALF: torch.bfloat16, Precision.FULL: torch.float32}
STUDENT = "the student", "connect the model that LongLive Session would take"
TEACHER = "the teacher", "connect a Wan2.1 text-to-video model, such as wan2.1_t2v_14B, or the miniature's teacher"
EXAMPLE = """\
# the first prompt of a video -> the prompt it goes on under
A red fox walks through a snowy forest. -> The red fox in the snowy forest stops and looks up.
A paper boat drifts down a gutter in the rain. -> The paper boat in the gutter spins, the rain stops.
"""


class PromptPairs(io.ComfyNode):
    """Prompts to tune on: each video begins under the first of a pair and goes on under the second."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongLivePromptPairs",
            display_name="LongLive Prompt Pairs",
            category=CATEGORY,
            description="Reads pairs of prompts to tune on, one a line: `first -> second`.",
            search_aliases=["longlive", "training prompts", "dataset", "captions", "tuning data"],
            is_experimental=True,
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder that belongs to the model: umT5-xxl (type wan)."),
                io.String.Input(
                    "pairs",
                    multiline=True,
                    default=EXAMPLE,
                    tooltip="A pair a line: how a video begins -> how it goes on. A prompt alone never switches; of "
                    "three prompts each is paired with the next. Lines that begin with # are comments.",
                ),
                io.String.Input(
                    "file",
                    default="",
                    optional=True,
                    tooltip="A text file of such lines, or .jsonl, read instead of the text above. Its name in "
                    "ComfyUI's input folder.",
                ),
                io.String.Input(
                    "negative",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="What the teacher is guided away from. Nothing is fine.",
                ),
            ],
            outputs=[PairsSocket.Output(display_name="pairs", tooltip="For LongLive Tuner.")],
        )

    @classmethod
    def validate_inputs(cls, pairs: str | None = None, file: str | None = "") -> bool | str:
        """Refuse text that is no pairs before any model is loaded; what is linked is not known yet."""
        if not isinstance(pairs, str | None) or not isinstance(file, str | None):  # as only an API prompt can have it
            return "pairs and file are text; write them as text"
        if pairs is None or file is None or file.strip():
            return True
        try:
            typed_pairs(pairs)
        except LongLiveError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, file: str | None = "", **_) -> str:
        """A file that was changed is read anew."""
        if not (file or "").strip():
            return ""
        try:
            stat = paths.pairs_path(file or "").stat()
        except (OSError, DataError):
            return ""
        return f"{stat.st_mtime_ns} {stat.st_size}"

    @classmethod
    def execute(cls, clip, pairs: str, file: str = "", negative: str = "") -> io.NodeOutput:
        texts = read_file(paths.pairs_path(file)) if file.strip() else typed_pairs(pairs)
        prompts = list(dict.fromkeys([negative, *(half for pair in texts for half in (pair.first, pair.second))]))
        bar, embeddings = comfy.utils.ProgressBar(len(prompts)), {}
        for prompt in prompts:
            comfy.model_management.throw_exception_if_processing_interrupted()
            conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
            embeddings[prompt] = host.any_prompt_of(conditioning).embedding[0]
            bar.update(1)
        embedded = tuple(EmbeddedPair(embeddings[pair.first], embeddings[pair.second]) for pair in texts)
        found = Pairs(texts, embedded, negative, embeddings[negative])
        return io.NodeOutput(found, ui=ui.PreviewText(told(texts, file.strip())))


def typed_pairs(text: str) -> tuple[PromptPair, ...]:
    """The pairs of the node's text. Raises DataError."""
    if len(text) > MAX_TYPED:
        raise DataError(f"the text has {len(text):,} characters, and {MAX_TYPED:,} at most are read; use a file")
    return parsed_pairs(text)


def read_file(path: Path) -> tuple[PromptPair, ...]:
    """The pairs of a file, of lines as they are typed or of JSON. Raises DataError."""
    pairs = read_pairs(path, limit=MAX_FILE_BYTES)
    return pairs if path.suffix.lower() == JSONL else parsed_pairs("\n".join(pair.first for pair in pairs))


def told(texts: tuple[PromptPair, ...], file: str) -> str:
    number = "1 pair" if len(texts) == 1 else f"{len(texts)} pairs"
    lines = [number + (f" of {file}; the text above is not used" if file else "")]
    lines += [f"{pair.first} -> {pair.second}" if pair.first != pair.second else pair.first for pair in texts]
    return "\n".join(lines)


class Tuner(io.ComfyNode):
    """Tune a model on its own long videos, judged by a teacher (LongLive §3.2, streaming long tuning)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        learn, stream = LearnConfig(), StreamConfig()
        return io.Schema(
            node_id="LongLiveTuner",
            display_name="LongLive Tuner (experimental)",
            category=CATEGORY,
            description="Lets a model learn from its own long videos under a teacher's eye. Gives a LoRA. Queue it "
            "again to go on where it was stopped.",
            search_aliases=["longlive", "train", "lora training", "fine-tune", "streaming long tuning", "dmd"],
            is_experimental=True,
            is_output_node=True,
            inputs=[
                io.Model.Input("student", tooltip="The model that learns, with the LoRAs it wears. It stays as it is."),
                io.Model.Input(
                    "teacher",
                    tooltip="A Wan2.1 text-to-video model that judges short clips: the larger, the better.",
                ),
                io.Vae.Input("vae", tooltip="The Wan2.1 VAE; the miniature's own for the miniature."),
                PairsSocket.Input("pairs", tooltip="From LongLive Prompt Pairs."),
                io.String.Input(
                    "name",
                    default="my_style",
                    tooltip="Of the LoRA in models/loras, and of the folder in output/longlive/tuning that keeps the "
                    "work. With the same name and settings it goes on; with other settings choose another name.",
                ),
                io.Int.Input(
                    "steps",
                    default=500,
                    min=1,
                    max=1_000_000,
                    tooltip="Steps in all. Raise it later and queue again to learn more.",
                ),
                io.Int.Input("rank", default=32, min=1, max=1024, tooltip="Size of the LoRA; the paper's is 256."),
                io.Float.Input(
                    "rate",
                    default=learn.rate,
                    min=1e-7,
                    max=1.0,
                    step=1e-7,
                    tooltip="How fast the student learns. Lower it if the video falls apart.",
                ),
                io.Float.Input(
                    "critic_rate",
                    default=learn.critic_rate,
                    min=1e-7,
                    max=1.0,
                    step=1e-7,
                    tooltip="How fast the critic learns what the student's videos look like.",
                ),
                io.Int.Input(
                    "ratio",
                    default=learn.ratio,
                    min=1,
                    max=100,
                    tooltip="The student learns in one of so many steps, the critic in all of them.",
                ),
                io.Int.Input(
                    "length",
                    default=stream.length,
                    min=stream.clip,
                    max=100_000,
                    step=3,
                    tooltip="Latent frames a video grows to before a new one begins: 240 are a minute, 21 only a clip.",
                ),
                io.Int.Input(
                    "batch", default=learn.batch, min=1, max=64, tooltip="Videos at once. More need more memory."
                ),
                io.Int.Input(
                    "width",
                    default=832,
                    min=SIZE_STEP,
                    max=4096,
                    step=SIZE_STEP,
                    tooltip="Pixels: 832, or 64 for the miniature.",
                ),
                io.Int.Input(
                    "height",
                    default=480,
                    min=SIZE_STEP,
                    max=4096,
                    step=SIZE_STEP,
                    tooltip="Pixels: 480, or 64 for the miniature.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=False,  # another one in the next run would be another tuning
                    tooltip="All that is random. Keep it to go on with a tuning.",
                ),
                io.Float.Input(
                    "guidance",
                    default=learn.guidance,
                    min=0.0,
                    max=20.0,
                    step=0.1,
                    tooltip="How strongly the teacher insists on the prompt. 3 is a cfg of 4.",
                ),
                io.Int.Input(
                    "anchored_on",
                    default=stream.anchored_on,
                    min=1,
                    max=100,
                    advanced=True,
                    tooltip="Latest frames that are decoded to find the picture a clip begins with. The miniature's "
                    "VAE remembers no more than 7.",
                ),
                OptionsSocket.Input(
                    "options", optional=True, tooltip="Window, sink, steps; the released values if left out."
                ),
            ],
            outputs=[
                io.String.Output(display_name="lora_name", tooltip="The LoRA's name, as LoRA loaders list it."),
                io.LoraModel.Output(
                    display_name="lora", tooltip="The LoRA itself, for Load LoRA Model, on the same student."
                ),
                io.Image.Output(display_name="curve", tooltip="The losses of student and critic."),
                io.Video.Output(display_name="sample", tooltip="A video of the first pair by the tuned student."),
            ],
        )

    @classmethod
    def execute(cls, student, teacher, vae, pairs: Pairs, name: str, **settings) -> io.NodeOutput:
        job = Job.of(student, teacher, vae, pairs, name, **settings)
        with host.given_back(), torch.inference_mode(False), torch.enable_grad():
            job.run()
        lora_file = job.delivered()
        curve = torch.from_numpy(np.asarray(job.drawn(), dtype=np.float32) / 255)[None]
        shown = ui.SavedResult(job.sample.name, str(job.folder.relative_to(output())), io.FolderType.output)
        return io.NodeOutput(
            str(lora_file.relative_to(paths.loras_folder())),
            load(lora_file.read_bytes()),
            curve,
            InputImpl.VideoFromFile(str(job.sample)),
            ui=ui.PreviewVideo([shown]),
        )


def output() -> Path:
    return Path(folder_paths.get_output_directory()).resolve()


@dataclass(frozen=True, kw_only=True)
class Job:
    """One tuning: what it is of, how, and where it is kept. Checked before anything is computed."""

    student: ModelPatcher
    teacher: ModelPatcher
    vae: VAE
    pairs: Pairs
    config: TuneConfig
    name: str
    folder: Path
    lora_file: Path
    shape_CHW: tuple[int, int, int]

    @classmethod
    def of(
        cls,
        student,
        teacher,
        vae,
        pairs: Pairs,
        name: str,
        *,
        steps: int,
        rank: int,
        rate: float,
        critic_rate: float,
        ratio: int,
        length: int,
        batch: int,
        width: int,
        height: int,
        seed: int,
        guidance: float,
        anchored_on: int,
        options: RolloutConfig | None = None,
    ) -> "Job":
        """Raises a LongLiveError for whatever cannot be tuned so."""
        for patcher, words in ((student, STUDENT), (teacher, TEACHER)):
            host.check_whole(patcher, *words)
            host.check_width(pairs.unprompted, patcher)
        refuse_other_vaes(vae)
        host.check_size(student, width, height)
        lora_file = paths.lora_path(name)
        refuse_to_replace(lora_file)
        peft()

        on_cpu = student.load_device.type == "cpu"
        is_full = student.model.get_dtype_inference() == torch.float32
        texts = json.dumps([pairs.negative, *([pair.first, pair.second] for pair in pairs.texts)])
        config = TuneConfig(
            model=ModelConfig(
                weights=f"MODEL {short(model_digest(student))}",
                teacher=f"MODEL {short(model_digest(teacher))}",
                pipeline=f"VAE {short(digest_of_tensors(vae.get_sd()))}",
            ),
            data=DataConfig(
                prompts=f"{len(pairs.texts)} pairs {short(texts)}", negative=pairs.negative, width=width, height=height
            ),
            rollout=options or RolloutConfig(),
            stream=StreamConfig(length=length, anchored_on=anchored_on),
            learn=LearnConfig(
                rank=rank,
                alpha=float(rank),
                rate=rate,
                critic_rate=critic_rate,
                ratio=ratio,
                guidance=guidance,
                batch=batch,
                checkpointing=not on_cpu,
                precision=Precision.FULL if is_full else Precision.HALF,
            ),
            run=RunConfig(steps=steps, seed=seed, offload=not on_cpu),
        )
        return cls(
            student=student,
            teacher=teacher,
            vae=vae,
            pairs=pairs,
            config=config,
            name=name.strip(),
            folder=paths.tuning_folder(name),
            lora_file=lora_file,
            shape_CHW=shape_of(height, width),
        )

    @property
    def sample(self) -> Path:
        return self.folder / f"sample-{self.config.run.steps:06d}.mp4"

    @property
    def adapter(self) -> Path:
        return self.folder / ADAPTER

    def run(self) -> None:
        """Tune, or go on tuning, and make the sample. Interrupted between two steps it keeps its work."""
        device = self.student.load_device
        with host.on_device(device), accelerator(self.config, self.folder, device) as found:
            tuning = Tuning(self._parts(), self.config, found)
            run(tuning, self.folder, watch=Watch(self))
            with VideoWriter(self.sample) as writer:
                for pixels in sample_of(tuning, seed=self.config.run.seed):
                    comfy.model_management.throw_exception_if_processing_interrupted()
                    writer.write(pixels)

    def _parts(self) -> Parts:
        dtype = DTYPES[self.config.learn.precision]
        pairs = tuple(EmbeddedPair(pair.first.clone(), pair.second.clone()) for pair in self.pairs.embedded)
        return Parts(
            student=host.copied(self.student, dtype, *STUDENT),
            critic=host.copied(self.teacher, dtype, *TEACHER),
            teacher=host.copied(self.teacher, dtype, *TEACHER),
            codec=tuning_codec(self.vae),
            pairs=pairs,
            unprompted=self.pairs.unprompted.clone(),
            shape_CHW=self.shape_CHW,
        )

    def drawn(self) -> chart.Image.Image:
        """The curve so far."""
        figures, steps = Curve(self.folder / CURVE).read(), self.config.run.steps
        done = int(figures[-1]["step"]) if figures else 0
        return chart.drawn(figures, steps, f"{self.name}: {done} of {steps} steps")

    def delivered(self) -> Path:
        """Put the adapter where LoRA loaders find it."""
        with atomic_write(self.lora_file) as part:
            shutil.copyfile(self.adapter, part)
        return self.lora_file


class Watch:
    """Tells ComfyUI of each step, with the curve now and then, and obeys its interrupt."""

    def __init__(self, job: Job) -> None:
        self.job, self.steps = job, job.config.run.steps
        self.bar = comfy.utils.ProgressBar(self.steps)

    def __call__(self, step: int, figures: dict[str, float]) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        is_shown = step % CURVE_EVERY == 0 or step in (1, self.steps)
        self.bar.update_absolute(step, preview=("JPEG", self.job.drawn(), PREVIEW_SIZE) if is_shown else None)


@contextmanager
def accelerator(config: TuneConfig, folder: Path, device: torch.device) -> Iterator:
    """One of our own. There is one a process: what other packs made of it is put aside, and is there again after."""
    try:
        from accelerate.state import AcceleratorState, GradientState, PartialState
    except ImportError as error:
        raise TuningError(
            f"tuning needs accelerate, which does not load ({error}); pip install peft accelerate"
        ) from error
    states = [state._shared_state for state in (AcceleratorState, GradientState, PartialState)]
    before = [dict(state) for state in states]
    for state in states:
        state.clear()
    try:
        yield accelerator_of(config, folder, on_cpu=device.type == "cpu")
    finally:
        for state, kept in zip(states, before, strict=True):
            state.clear()
            state.update(kept)


def refuse_to_replace(path: Path) -> None:
    """Refuse to write over an adapter that no tuning made. Raises TuningError."""
    if not path.exists():
        return
    try:
        check_regular(path)
        with safe_open(path, "pt") as file:
            made_here = TUNED in (file.metadata() or {})
    except (OSError, SafetensorError):
        made_here = False
    if not made_here:
        raise TuningError(f"{path} is a LoRA that no tuning of LongLive made; choose another name for yours")


def short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:SHORT]


NODES = [PromptPairs, Tuner]
