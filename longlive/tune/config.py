"""The numbers of a tuning, and the TOML file they stand in. Defaults are the paper's second stage (LongLive §3.2).

Knows no tensor. Each section of the file is one class here; a word that no class has is refused by name.
"""

import difflib
import json
import reprlib
import tomllib
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from pathlib import Path

from ..config import MAX_SEED, SIZE_STEP, RolloutConfig
from ..errors import ConfigError, TuningError
from ..files import read_text
from ..timeline import Boundary
from ..untrusted import brief, conform, conform_fields

NEWEST = 3  # checkpoints that are kept
MAX_COUNT = 1_000_000  # of steps, frames, videos: whoever writes more means something else
MAX_SIZE = 1 << 14  # pixels
SHOWN = 40  # letters of an unknown word
MAX_FILE_BYTES = 100_000  # of a configuration


class Precision(StrEnum):
    """What matrix products are computed in."""

    FULL = "fp32"
    HALF = "bf16"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The networks: the miniature's, or files."""

    miniature: bool = False
    weights: str = ""  # of the student
    lora: str = ""  # merged into the student before it learns
    teacher: str = ""
    critic: str = ""  # what it begins as; the teacher where left out
    pipeline: str = ""  # diffusers-format folder with the text encoder and the VAE

    def __post_init__(self) -> None:
        conform_fields(self)
        named = [name for name in ("weights", "teacher", "pipeline") if not getattr(self, name)]
        if not self.miniature and named:
            raise ConfigError(f"model has no {' and no '.join(named)}; name the files, or set miniature = true")
        if self.miniature and len(named) < len(("weights", "teacher", "pipeline")):
            raise ConfigError("model is the miniature and names files too; leave one of them out")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """What is tuned on."""

    prompts: str = ""  # text, one a line, or JSONL of pairs; the miniature makes its own where left out
    switched: str = ""  # text: the second prompt of each line
    negative: str = ""  # the prompt the teacher is guided away from
    width: int = 832  # pixels of the videos; the miniature's are 64 x 64
    height: int = 480

    def __post_init__(self) -> None:
        conform_fields(self)
        check_range(self, SIZE_STEP, MAX_SIZE, "width", "height")
        for name in ("width", "height"):
            if getattr(self, name) % SIZE_STEP:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be a multiple of {SIZE_STEP}")


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamConfig:
    """How videos are streamed. The defaults are the paper's second stage; `length` 21 is its first."""

    clip: int = 21  # frames that are judged at once
    overlap: int = 3  # of them, that a video had before
    length: int = 240  # frames after which a video begins anew
    boundary: Boundary = Boundary.RECACHE  # at a switch; `renew` renews the sink
    anchored_on: int = 19  # latest frames that are decoded to find the first picture of a clip
    reference_behaviour: bool = False  # at a switch recache a clip and leave the sink zero; lose links as it does

    def __post_init__(self) -> None:
        conform_fields(self)
        if not 0 < self.overlap < self.clip:
            raise ConfigError(f"overlap is {self.overlap}; it must be 1 to {self.clip - 1} frames of a clip")
        if self.length < self.clip:
            raise ConfigError(f"length is {self.length}; a video has at least a clip, {self.clip} frames")
        if self.boundary not in (Boundary.RECACHE, Boundary.RENEW):
            raise ConfigError(f"boundary is {self.boundary}; tuning knows recache and renew")
        check_range(self, 1, MAX_COUNT, "length", "anchored_on")

    @property
    def switches(self) -> tuple[int, ...]:
        """The frames a prompt may change at: those where a chunk begins."""
        return tuple(range(self.clip, self.length - self.clip + self.overlap + 1, self.clip - self.overlap))


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnConfig:
    """How the student and its critic learn."""

    rank: int = 256  # of both adapters; 0 tunes all weights
    alpha: float = 256.0
    rate: float = 1e-5
    critic_rate: float = 2e-6
    betas: tuple[float, float] = (0.0, 0.999)
    weight_decay: float = 0.01
    largest_norm: float = 10.0  # gradients are clipped to it
    ratio: int = 5  # critic steps to a student's step
    guidance: float = 3.0  # of the teacher: x_0 + 3 (x_0 - x_0 unprompted)
    batch: int = 1  # videos at once on each GPU
    accumulation: int = 1  # batches of a step, each with videos of its own
    average: float = 0.0  # weight of the past in an average of the student's weights; 0 for none, stage 1 has 0.99
    average_from: int = 200  # step
    kv_gradients: bool = False  # through remembered keys and values too, as in the reference's first chunk
    checkpointing: bool = True  # less memory, a third more time
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
    """How long, and what is kept. Of it only the seed changes what is learnt."""

    steps: int = 3000
    seed: int = 0
    save_every: int = 50  # steps
    sample_every: int = 0  # steps between sample videos; 0 for none
    keep: int = NEWEST  # newest checkpoints
    offload: bool = True  # the teacher waits on the CPU
    tensorboard: bool = False

    def __post_init__(self) -> None:
        conform_fields(self)
        check_range(self, 1, MAX_COUNT, "steps", "save_every", "keep")
        check_range(self, 0, MAX_COUNT, "sample_every")
        check_range(self, 0, MAX_SEED, "seed")


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneConfig:
    """All numbers of a tuning."""

    model: ModelConfig
    data: DataConfig = field(default_factory=DataConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    stream: StreamConfig = field(default_factory=StreamConfig)
    learn: LearnConfig = field(default_factory=LearnConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def determining(self) -> dict[str, object]:
        """What decides how the weights come out, as plain JSON values by dotted name."""
        sections = {name: asdict(getattr(self, name)) for name in ("model", "data", "stream", "learn")}
        sections |= {"rollout": self.rollout.as_dict(), "run": {"seed": self.run.seed}}
        del sections["learn"]["checkpointing"]  # it moves memory, not numbers
        flat = {f"{section}.{name}": value for section, values in sections.items() for name, value in values.items()}
        return json.loads(json.dumps(flat))


def check_range(config: object, low: int, high: int, *names: str) -> None:
    """Refuse numbers out of range. Raises ConfigError."""
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
    """Read a TOML file; paths in it are relative to it. Raises TuningError."""
    try:
        found = tomllib.loads(read_text(path, MAX_FILE_BYTES))
    except FileNotFoundError as error:
        raise TuningError(f"there is no configuration at {path}; begin with one of longlive/tune/configs") from error
    except OSError as error:
        raise TuningError(f"{path} cannot be read ({error.strerror or error}); give a TOML file") from error
    except (ValueError, RecursionError) as error:  # of a wrong word; of a number, of brackets without end
        raise TuningError(f"{path} cannot be read as TOML ({brief(error)}); mend that line") from error
    refuse_unknown(path, "section", found, SECTIONS)
    made = {}
    try:
        for name, values in found.items():
            made[name] = read_section(path, name, values)
    except ConfigError as error:
        raise TuningError(f"{path}: {error}") from error
    if "model" not in made:
        raise TuningError(f"{path} has no [model]; name the weights there, or set miniature = true")
    return TuneConfig(**made)


def read_section(path: Path, name: str, values: object) -> object:
    """The section `name` of a configuration. Raises TuningError, or ConfigError for a wrong value."""
    if not isinstance(values, dict):
        raise TuningError(f"{path}: {name} stands outside of its section; write [{name}] above its settings")
    refuse_unknown(path, f"setting of [{name}]", values, {option.name: option for option in fields(SECTIONS[name])})
    return SECTIONS[name](
        **{key: resolved(path, key, value) if key in PATHS.get(name, ()) else value for key, value in values.items()}
    )


def refuse_unknown(path: Path, what: str, found: dict, known: dict) -> None:
    for name in found:
        if name not in known:
            near = difflib.get_close_matches(name[:SHOWN], known, n=1)
            cure = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise TuningError(f"{path}: {name[:SHOWN]!r} is no {what}; {cure}")


def resolved(path: Path, name: str, value: object) -> str:
    """A path in a configuration that stands at `path`. Raises ConfigError for what is none."""
    try:
        text = conform(value, str, name)
        return str((path.parent / text).resolve()) if text else text
    except (OSError, RuntimeError) as error:  # links that lead to each other
        raise ConfigError(f"{name} is {brief(value)}, which leads nowhere: {error}") from error
    except ValueError as error:
        raise ConfigError(f"{name} is {reprlib.repr(value)}; it must be a path") from error


def refuse_other(path: Path, then: dict[str, object], now: dict[str, object]) -> None:
    """Refuse to go on from a checkpoint of another configuration, saying what differs. Raises TuningError."""
    differences = [
        f"{name} was {then.get(name)!r} and is {now.get(name)!r}"
        for name in sorted({*then, *now})
        if then.get(name) != now.get(name)
    ]
    if differences:
        raise TuningError(
            f"{path} was made with another configuration: {'; '.join(differences)}; "
            f"set that back, or tune in another folder"
        )
