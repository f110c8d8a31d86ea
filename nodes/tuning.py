"""Nodes of streaming long tuning: prompt pairs, and the tuner that makes a LoRA (LongLive §3.2, Alg. 1)."""

import logging
from pathlib import Path

from comfy_api.latest import InputImpl, io, ui

from ..longlive.errors import DataError, LongLiveError
from ..longlive.model.speed import Speed
from ..longlive.tuning.config import LearnConfig, StreamConfig
from ..longlive.tuning.prompt_pairs import JSONL, PromptPair, parse_pairs, read_pairs
from .host import paths
from .host.conditioning import Pairs, encode_pairs
from .host.tuning_job import Models, TuningJob, TuningSettings
from .inputs import make_clip_input, make_options_input, make_seed_input, make_size_inputs
from .sockets import PairsSocket, SessionOptions

log = logging.getLogger(__name__)

CATEGORY = "LongLive/tuning"
MAX_TEXT_LENGTH = 200_000  # characters; the server answers nobody while it parses them
MAX_PAIRS_BYTES = 16 << 20  # some ten thousand pairs, which are all encoded and kept in memory
EXAMPLE = """\
# first prompt of a video -> its prompt after the switch
A red fox walks through a snowy forest. -> The red fox in the snowy forest stops and looks up.
A paper boat drifts down a gutter in the rain. -> The paper boat in the gutter spins, the rain stops.
"""


class PromptPairs(io.ComfyNode):
    """Prompts to tune on: each video begins under the first prompt of a pair and continues under the second."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongLivePromptPairs",
            display_name="LongLive Prompt Pairs",
            category=CATEGORY,
            description="Reads pairs of prompts to tune on, one per line: `first -> second`.",
            search_aliases=["longlive", "training prompts", "dataset", "captions", "tuning data"],
            is_experimental=True,
            inputs=[
                make_clip_input(),
                io.String.Input(
                    "pairs",
                    multiline=True,
                    default=EXAMPLE,
                    tooltip="One pair per line: how a video begins -> how it continues. A line with one prompt makes a "
                    "video without a switch, one with three prompts makes two pairs. Lines that begin with # are "
                    "comments.",
                ),
                io.String.Input(
                    "file",
                    default="",
                    optional=True,
                    tooltip="A text file of such lines, or a .jsonl file, in ComfyUI's input folder. It replaces the "
                    "text above.",
                ),
                io.String.Input(
                    "negative",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="Negative prompt for the teacher. May be empty.",
                ),
            ],
            outputs=[PairsSocket.Output(display_name="pairs", tooltip="For LongLive Tuner.")],
        )

    @classmethod
    def validate_inputs(cls, pairs: str | None = None, file: str | None = "") -> bool | str:
        """Refuse text without pairs before any model is loaded. Linked inputs are not known yet."""
        if not isinstance(pairs, str | None) or not isinstance(file, str | None):  # only in an API prompt
            return "pairs and file must be text"
        if pairs is None or file is None or file.strip():
            return True
        try:
            read_typed_pairs(pairs)
        except LongLiveError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, file: str | None = "", **_) -> str:
        """Read a file again when it changes."""
        if not (file or "").strip():
            return ""
        try:
            return paths.fingerprint_file(paths.find_pairs_path(file or ""))
        except (OSError, DataError):
            return ""

    @classmethod
    def execute(cls, clip, pairs: str, file: str = "", negative: str = "") -> io.NodeOutput:
        texts = read_pairs_file(paths.find_pairs_path(file)) if file.strip() else read_typed_pairs(pairs)
        return io.NodeOutput(
            encode_pairs(clip, texts, negative), ui=ui.PreviewText(describe_pairs(texts, file.strip()))
        )


def read_typed_pairs(text: str) -> tuple[PromptPair, ...]:
    """Read the pairs of the node's text. Raises DataError."""
    if len(text) > MAX_TEXT_LENGTH:
        raise DataError(f"the text has {len(text):,} characters, at most {MAX_TEXT_LENGTH:,} are read; use a file")
    return parse_pairs(text)


def read_pairs_file(path: Path) -> tuple[PromptPair, ...]:
    """Read the pairs of a file: JSON lines, or text like the node's. Raises DataError."""
    pairs = read_pairs(path, limit=MAX_PAIRS_BYTES)
    return pairs if path.suffix.lower() == JSONL else parse_pairs("\n".join(pair.first for pair in pairs))


def describe_pairs(texts: tuple[PromptPair, ...], file: str) -> str:
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
            description="Tunes a model on its own long videos, judged by a teacher, and makes a LoRA. After Cancel, "
            "run it again to continue.",
            search_aliases=["longlive", "train", "lora training", "fine-tune", "streaming long tuning", "dmd"],
            is_experimental=True,
            is_output_node=True,
            inputs=[
                io.Model.Input(
                    "student", tooltip="The model to tune, including the LoRAs applied to it. It is not modified."
                ),
                io.Model.Input(
                    "teacher",
                    tooltip="A Wan2.1 text-to-video model that judges short clips. Larger ones judge better.",
                ),
                io.Vae.Input("vae", tooltip="The Wan2.1 VAE, or the miniature's VAE for the miniature."),
                PairsSocket.Input("pairs", tooltip="From LongLive Prompt Pairs."),
                io.String.Input(
                    "name",
                    default="my_style",
                    tooltip="Name of the LoRA in models/loras, and of the folder in output/longlive/tuning. To "
                    "continue a tuning, keep name and settings; to change settings, choose another name.",
                ),
                io.Int.Input(
                    "steps",
                    default=500,
                    min=1,
                    max=1_000_000,
                    tooltip="Total steps. Raise it later and run again to continue the tuning.",
                ),
                io.Int.Input("rank", default=32, min=1, max=1024, tooltip="Rank of the LoRA. The paper uses 256."),
                make_rate_input(
                    "rate", learn.rate, tooltip="Learning rate of the student. Lower it if the video falls apart."
                ),
                make_rate_input(
                    "critic_rate",
                    learn.critic_rate,
                    tooltip="Learning rate of the critic, which learns what the student's videos look like.",
                ),
                io.Int.Input(
                    "ratio",
                    default=learn.ratio,
                    min=1,
                    max=100,
                    tooltip="Steps of the critic per step of the student.",
                ),
                io.Int.Input(
                    "length",
                    default=stream.length,
                    min=stream.clip,
                    max=100_000,
                    step=3,
                    tooltip="Latent frames of each video: 240 are a minute. Below 39 no video switches its prompt.",
                ),
                io.Int.Input(
                    "batch", default=learn.batch, min=1, max=64, tooltip="Videos per step. More need more memory."
                ),
                *make_size_inputs(),
                make_seed_input(
                    control_after_generate=False,  # another seed in the next run would be another tuning
                    tooltip="Seed of everything random. Keep it to continue a tuning.",
                ),
                io.Float.Input(
                    "guidance",
                    default=learn.guidance,
                    min=0.0,
                    max=20.0,
                    step=0.1,
                    tooltip="How strongly the teacher insists on the prompt: a cfg minus 1, so 3 equals a cfg of 4.",
                ),
                io.Int.Input(
                    "anchored_on",
                    default=stream.anchored_on,
                    min=1,
                    max=100,
                    advanced=True,
                    tooltip="Latest latent frames that are decoded for the first picture of a clip. Leave it at 19; 7 "
                    "are enough for the miniature.",
                ),
                make_options_input(),
            ],
            outputs=[
                io.String.Output(display_name="lora_name", tooltip="The LoRA's name, as LoRA loaders list it."),
                io.LoraModel.Output(
                    display_name="lora", tooltip="The LoRA, for Load LoRA Model with the same student."
                ),
                io.Image.Output(display_name="curve", tooltip="A picture of the losses of student and critic."),
                io.Video.Output(display_name="sample", tooltip="A video of the first pair by the tuned student."),
            ],
        )

    @classmethod
    def execute(
        cls, student, teacher, vae, pairs: Pairs, name: str, options: SessionOptions | None = None, **settings
    ) -> io.NodeOutput:
        models = Models(student=student, teacher=teacher, vae=vae)
        options = options or SessionOptions()
        if options.speed is not Speed.EXACT:
            log.warning("the speed %s is for sampling; a tuning computes exactly", options.speed)
        job = TuningJob(models, pairs, name, TuningSettings(rollout=options.rollout, **settings))
        job.run()
        sample = ui.SavedResult(job.sample_file.name, job.sample_folder, io.FolderType.output)
        return io.NodeOutput(
            job.lora_name,
            job.load_lora(),
            job.draw_curve_image(),
            InputImpl.VideoFromFile(str(job.sample_file)),
            ui=ui.PreviewVideo([sample]),
        )


def make_rate_input(name: str, default: float, *, tooltip: str) -> io.Input:
    return io.Float.Input(name, default=default, min=1e-7, max=1.0, step=1e-7, tooltip=tooltip)


NODES = [PromptPairs, Tuner]
