"""The settings of a tuning, and the TOML file that holds them. Defaults are the paper's second stage (LongLive §3.2).

Each section of the file is one class here. Unknown names are refused. Imports no torch.
"""

import difflib
import json
import reprlib
import tomllib
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from pathlib import Path

from ..config import MAX_SEED, RolloutConfig, RolloutKind
from ..errors import ConfigError, TuningError, shorten
from ..files import read_text
from ..session.boundary import Boundary
from ..units import MAX_SIZE, SIZE_STEP
from ..untrusted import conform, conform_fields

KEPT_CHECKPOINTS = 3
MAX_COUNT = 1_000_000  # of steps, frames, videos: a larger number is a mistake
MAX_NAME_SHOWN = 40  # letters of an unknown name in a message
MAX_CONFIG_BYTES = 100_000


class Precision(StrEnum):
    """The precision of matrix products."""

    FULL = "fp32"
    HALF = "bf16"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The networks: those of the miniature, or files."""

    miniature: bool = False
    weights: str = ""  # weights file of the student
    lora: str = ""  # merged into the student before tuning
    teacher: str = ""
    critic: str = ""  # its initial weights; the teacher's if empty
    pipeline: str = ""  # diffusers-format folder with the text encoder and the VAE

    def __post_init__(self) -> None:
        conform_fields(self)
        named = [name for name in ("weights", "teacher", "pipeline") if not getattr(self, name)]
        if not self.miniature and named:
            raise ConfigError(f"model has no {' and no '.join(named)}; name the files, or set miniature = true")
        if self.miniature and len(named) < len(("weights", "teacher", "pipeline")):
            raise ConfigError("model has miniature = true and names files too; remove one of them")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """The prompts and the size of the videos."""

    prompts: str = ""  # text, one per line, or JSONL of pairs; if empty, the miniature makes its own
    switched: str = ""  # text: the second prompt for each line
    negative: str = ""  # negative prompt for the teacher
    width: int = 832  # pixels; the miniature's videos are 64 x 64
    height: int = 480

    def __post_init__(self) -> None:
        conform_fields(self)
        check_range(self, SIZE_STEP, MAX_SIZE, "width", "height")
        if self.switched and not self.prompts:
            raise ConfigError("switched names second prompts, but prompts is empty; name both files")
        for name in ("width", "height"):
            if getattr(self, name) % SIZE_STEP:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be a multiple of {SIZE_STEP}")


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamConfig:
    """How videos grow, in frames. The defaults are the paper's second stage; its first is `length = 21`."""

    clip: int = 21  # what the score networks see at once
    overlap: int = 3  # of a clip, those that the video had before
    length: int = 240  # no video becomes longer: then a new one begins
    boundary: Boundary = Boundary.RECACHE  # at a switch; `renew` also recomputes the sink
    anchored_on: int = 19  # decoded to make the picture that a clip begins with
    reference_behaviour: bool = False  # as the reference recaches (a whole clip, the sink zero) and passes gradients

    def __post_init__(self) -> None:
        conform_fields(self)
        if not 0 < self.overlap < self.clip:
            raise ConfigError(f"overlap is {self.overlap}; it must be 1 to {self.clip - 1} frames of a clip")
        if self.length < self.clip:
            raise ConfigError(f"length is {self.length}; it must be at least a clip, {self.clip} frames")
        if self.boundary not in (Boundary.RECACHE, Boundary.RENEW):
            raise ConfigError(f"boundary is {self.boundary}; tuning supports recache and renew")
        check_range(self, 1, MAX_COUNT, "length", "anchored_on")

    @property
    def switches(self) -> tuple[int, ...]:
        """The frames where the prompt may switch: those where a chunk begins."""
        return tuple(range(self.clip, self.length - self.clip + self.overlap + 1, self.clip - self.overlap))


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnConfig:
    """How the student and its critic are trained."""

    rank: int = 256  # of the adapters of student and critic; 0 tunes all weights
    alpha: float = 256.0
    rate: float = 1e-5
    critic_rate: float = 2e-6
    betas: tuple[float, float] = (0.0, 0.999)
    weight_decay: float = 0.01
    largest_norm: float = 10.0  # gradients are clipped to this norm
    ratio: int = 5  # the critic learns in every step, the student in one of this many
    guidance: float = 3.0  # of the teacher: x + 3 (x - n) of its latents under the prompt, x, and the negative one, n
    batch: int = 1  # videos at once, per GPU
    accumulation: int = 1  # micro-batches per step, each with its own videos
    average: float = 0.0  # decay of the moving average of the student's weights, 0.99 in stage 1; 0 for no average
    average_from: int = 200  # step
    kv_gradients: bool = False  # pass gradients through cached keys and values, as the reference does in a first chunk
    checkpointing: bool = True  # saves memory, takes a third more time
    precision: Precision = Precision.HALF

    def __post_init__(self) -> None:
        conform_fields(self)
        check_range(self, 1, MAX_COUNT, "ratio", "batch", "accumulation")
        check_range(self, 0, MAX_COUNT, "rank", "average_from", "guidance", "weight_decay")
        for name in ("rate", "critic_rate", "largest_norm", "alpha"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; use a number above 0")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"betas are {list(self.betas)}; use numbers from 0 to below 1, such as 0.0 and 0.999")
        if not 0 <= self.average < 1:
            raise ConfigError(f"average is {self.average}; use 0 for none, or a number below 1 such as 0.99")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """How long to tune and what to keep. Of these, only `steps` and `seed` change the resulting weights."""

    steps: int = 3000
    seed: int = 0
    save_every: int = 50  # steps
    sample_every: int = 0  # steps between sample videos; 0 for none
    keep: int = KEPT_CHECKPOINTS  # newest checkpoints
    offload: bool = True  # keep the teacher on the CPU while it is not needed
    tensorboard: bool = False

    def __post_init__(self) -> None:
        conform_fields(self)
        check_range(self, 1, MAX_COUNT, "steps", "save_every", "keep")
        check_range(self, 0, MAX_COUNT, "sample_every")
        check_range(self, 0, MAX_SEED, "seed")


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneConfig:
    """All settings of a tuning."""

    model: ModelConfig
    data: DataConfig = field(default_factory=DataConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    stream: StreamConfig = field(default_factory=StreamConfig)
    learn: LearnConfig = field(default_factory=LearnConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        check_kind(self.rollout.kind)

    def as_fixed_settings(self) -> dict[str, object]:
        """Return the settings that change the resulting weights, as plain JSON values by dotted name."""
        sections = {name: asdict(getattr(self, name)) for name in ("model", "data", "stream", "learn")}
        sections |= {"rollout": self.rollout.as_dict(), "run": {"seed": self.run.seed}}
        del sections["learn"]["checkpointing"]  # it changes memory and time, not numbers
        flat = {f"{section}.{name}": value for section, values in sections.items() for name, value in values.items()}
        return json.loads(json.dumps(flat))


def check_kind(kind: object) -> None:
    """Raise ConfigError for videos that no tuning learns from."""
    if kind != RolloutKind.BLOCKWISE:
        raise ConfigError(
            f"kind is {reprlib.repr(str(kind))}; a tuning makes its own videos {RolloutKind.BLOCKWISE}; choose that"
        )


def check_range(config: object, low: int, high: int, *names: str) -> None:
    """Raise ConfigError for a number out of range."""
    for name in names:
        if not low <= getattr(config, name) <= high:
            raise ConfigError(f"{name} is {getattr(config, name)}; it must be from {low} to {high}")


SECTIONS = {
    "model": ModelConfig,
    "data": DataConfig,
    "rollout": RolloutConfig,
    "stream": StreamConfig,
    "learn": LearnConfig,
    "run": RunConfig,
}
PATHS = {"model": ("weights", "lora", "teacher", "critic", "pipeline"), "data": ("prompts", "switched")}


def read_config(path: Path) -> TuneConfig:
    """Read a TOML file. Paths in it are relative to its folder. Raises TuningError."""
    try:
        found = tomllib.loads(read_text(path, MAX_CONFIG_BYTES))
    except FileNotFoundError as error:
        raise TuningError(f"there is no configuration at {path}; start from one in longlive/tuning/configs") from error
    except OSError as error:
        raise TuningError(f"{path} cannot be read ({error.strerror or error}); give a TOML file") from error
    except (ValueError, RecursionError) as error:  # wrong syntax; a huge number, endless brackets
        raise TuningError(f"{path} cannot be read as TOML ({shorten(error)}); correct that line") from error
    refuse_unknown(path, "section", found, SECTIONS)
    sections = {}
    try:
        for name, values in found.items():
            sections[name] = read_section(path, name, values)
        if "model" not in sections:
            raise TuningError(f"{path} has no [model]; name the weights there, or set miniature = true")
        return TuneConfig(**sections)
    except ConfigError as error:
        raise TuningError(f"{path}: {error}") from error


def read_section(path: Path, name: str, values: object) -> object:
    """Read the section `name` of a configuration. Raises TuningError, or ConfigError for a wrong value."""
    if not isinstance(values, dict):
        raise TuningError(f"{path}: {name} is not a section; write [{name}] above its settings")
    refuse_unknown(path, f"setting of [{name}]", values, {option.name: option for option in fields(SECTIONS[name])})
    if SECTIONS[name] is RolloutConfig:
        check_kind(values.get("kind", RolloutKind.BLOCKWISE))
    return SECTIONS[name](
        **{
            key: resolve_path(path, key, value) if key in PATHS.get(name, ()) else value
            for key, value in values.items()
        }
    )


def refuse_unknown(path: Path, what: str, found: dict, known: dict) -> None:
    for name in found:
        if name not in known:
            near = difflib.get_close_matches(name[:MAX_NAME_SHOWN], known, n=1)
            cure = f"did you mean {near[0]}?" if near else f"use one of {', '.join(known)}"
            raise TuningError(f"{path}: {name[:MAX_NAME_SHOWN]!r} is not a {what}; {cure}")


def resolve_path(path: Path, name: str, value: object) -> str:
    """Resolve a path that the configuration at `path` names. Raises ConfigError for a value that is not a path."""
    try:
        text = conform(value, str, name)
        return str((path.parent / text).resolve()) if text else text
    except (OSError, RuntimeError) as error:  # links that point to each other
        raise ConfigError(f"{name} is {shorten(value)}, which cannot be resolved: {error}") from error
    except ValueError as error:
        raise ConfigError(f"{name} is {reprlib.repr(value)}; it must be a path") from error


def refuse_other_config(path: Path, saved: dict[str, object], current: dict[str, object]) -> None:
    """Raise TuningError, naming what differs, for a checkpoint of another configuration."""
    differences = [
        f"{name} was {saved.get(name)!r} and is {current.get(name)!r}"
        for name in sorted({*saved, *current})
        if saved.get(name) != current.get(name)
    ]
    if differences:
        raise TuningError(
            f"{path} was made with another configuration: {'; '.join(differences)}; "
            f"restore the old values, or tune in another folder"
        )
