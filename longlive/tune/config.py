"""The numbers of a tuning, and the TOML file they stand in. Defaults are the paper's second stage (LongLive §3.2).

Knows no tensor. Each section of the file is one class here; a word that no class has is refused by name.
"""

import difflib
import json
import math
import tomllib
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from pathlib import Path

from ..config import SIZE_STEP, RolloutConfig
from ..errors import ConfigError, TuningError
from ..timeline import Boundary

NEWEST = 3  # checkpoints that are kept


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
        for name in ("width", "height"):
            if getattr(self, name) <= 0 or getattr(self, name) % SIZE_STEP:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be a positive multiple of {SIZE_STEP}")


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
        object.__setattr__(self, "boundary", Boundary(self.boundary))
        if not 0 < self.overlap < self.clip:
            raise ConfigError(f"overlap is {self.overlap}; it must be 1 to {self.clip - 1} frames of a clip")
        if self.length < self.clip:
            raise ConfigError(f"length is {self.length}; a video has at least a clip, {self.clip} frames")
        if self.boundary not in (Boundary.RECACHE, Boundary.RENEW):
            raise ConfigError(f"boundary is {self.boundary}; tuning knows recache and renew")
        if self.anchored_on < 1:
            raise ConfigError(f"anchored_on is {self.anchored_on}; at least 1 frame must be decoded")

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
        object.__setattr__(self, "precision", Precision(self.precision))
        object.__setattr__(self, "betas", tuple(self.betas))
        for name in ("ratio", "batch", "accumulation"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; use at least 1")
        for name in ("rank", "average_from"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; use 0 or more")
        for name in ("rate", "critic_rate", "largest_norm", "alpha"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ConfigError(f"{name} is {getattr(self, name)}; use a number above 0")
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
        for name, least in (("steps", 1), ("save_every", 1), ("keep", 1), ("sample_every", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}; use at least {least}")


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
    """Read a TOML file; paths in it are relative to it. Raises TuningError, or ConfigError for a wrong number."""
    try:
        with path.open("rb") as file:
            found = tomllib.load(file)
    except FileNotFoundError as error:
        raise TuningError(f"there is no configuration at {path}; begin with one of longlive/tune/configs") from error
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise TuningError(f"{path} cannot be read as TOML: {error}; mend that line") from error
    refuse_unknown(path, "section", found, SECTIONS)
    made = {}
    for name, values in found.items():
        if not isinstance(values, dict):
            raise TuningError(f"{path}: {name} stands outside of its section; write [{name}] above its settings")
        known = {option.name: option for option in fields(SECTIONS[name])}
        refuse_unknown(path, f"setting of [{name}]", values, known)
        values = {key: resolved(path, value) if key in PATHS.get(name, ()) else value for key, value in values.items()}
        try:
            made[name] = SECTIONS[name](**values)
        except (TypeError, ValueError) as error:
            raise TuningError(f"{path}: [{name}] has a wrong value ({error}); see longlive/tune/configs") from error
    if "model" not in made:
        raise TuningError(f"{path} has no [model]; name the weights there, or set miniature = true")
    return TuneConfig(**made)


def refuse_unknown(path: Path, what: str, found: dict, known: dict) -> None:
    for name in found:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            cure = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise TuningError(f"{path}: {name!r} is no {what}; {cure}")


def resolved(path: Path, value: str) -> str:
    return str((path.parent / value).resolve()) if value else value


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
