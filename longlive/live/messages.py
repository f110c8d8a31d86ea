"""What a run can be told: messages as JSON objects. Anyone may have written them, so each is checked before it is used.

| `do` | fields | what it asks for |
|---|---|---|
| `say` | `prompt`; optional `boundary`, `blend`, `curve`, `seed`, `at` | a prompt from the next block or `at` on |
| `prepare` | `prompt` | to encode a prompt that may be said soon |
| `pause`, `resume` | | to make no more blocks for now; to go on |
| `rewind` | `to` | to go on from the start of block `to` |
| `seed` | `seed` | other noise from the next block on |
| `stop` | optional `at` | to end the video, at once or at `at` |
| `finish` | | to end it when all that was said has begun |
| `watch` | `seconds`, `viewer` | nothing: says where a viewer is |

Times are seconds of the video.
"""

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

from ..config import check_seed
from ..errors import ConfigError, MessageError
from ..session.boundary import Blend, Boundary, Curve
from ..session.timeline import BOUNDARIES
from ..units import MAX_SECONDS
from ..untrusted import conform, parse_json, read_field
from .decision import BLENDED

MAX_MESSAGE_BYTES = 16 << 10
MAX_PROMPT = 4000  # characters
USUAL_BLEND = 3  # blocks, where a message gives none
VIEWER_DIGITS = range(8, 33)


@dataclass(frozen=True, slots=True)
class Say:
    """A prompt, from `at` on or from the next block on. Raises MessageError for a value that cannot be used."""

    prompt: str
    boundary: Boundary = Boundary.RECACHE
    seed: int | None = None
    blend: Blend | None = None
    at: float | None = None  # seconds of the video

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt", as_one_line(self.prompt))
        if self.seed is not None:
            _check_range(self.seed)
        _check_time(self.at)


@dataclass(frozen=True, slots=True)
class Prepare:
    """A prompt that may be said soon, to be encoded before it is."""

    prompt: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt", as_one_line(self.prompt))


@dataclass(frozen=True, slots=True)
class Pause:
    """No block is made until `Resume`."""


@dataclass(frozen=True, slots=True)
class Resume:
    """Blocks are made again."""


@dataclass(frozen=True, slots=True)
class RewindTo:
    """The video goes on from the start of block `to`; later blocks are dropped."""

    to: int


@dataclass(frozen=True, slots=True)
class Reseed:
    """Other noise from the next block on. Raises MessageError for a seed out of range."""

    seed: int

    def __post_init__(self) -> None:
        _check_range(self.seed)


@dataclass(frozen=True, slots=True)
class Stop:
    """The video ends here, or at `at`."""

    at: float | None = None  # seconds of the video

    def __post_init__(self) -> None:
        _check_time(self.at)


@dataclass(frozen=True, slots=True)
class Finish:
    """The video ends when all that was said has begun."""


@dataclass(frozen=True, slots=True)
class Playhead:
    """A viewer is at `seconds` of the video."""

    seconds: float
    viewer: str  # a hexadecimal number that the viewer chose

    def __post_init__(self) -> None:
        _check_time(self.seconds)
        if len(self.viewer) not in VIEWER_DIGITS or set(self.viewer) - set("0123456789abcdef"):
            raise MessageError(f"viewer is {self.viewer[:40]!r}; use 8 to 32 hexadecimal digits, chosen by chance")


Message = Say | Prepare | Pause | Resume | RewindTo | Reseed | Stop | Finish | Playhead


def read_message(text: str | bytes) -> Message:
    """Read a message from JSON. Raises MessageError as `parse_message`, also for text that is too long or not JSON."""
    size = len(text if isinstance(text, bytes) else text.encode(errors="replace"))
    if size > MAX_MESSAGE_BYTES:
        raise MessageError(f"the message has {size:,} bytes; {MAX_MESSAGE_BYTES:,} at most are read")
    try:
        value = parse_json(text)
    except ValueError as error:
        raise MessageError(f"the message is not JSON ({error}); send an object, such as {{'do': 'pause'}}") from error
    return parse_message(value)


def parse_message(value: object) -> Message:
    """Make a message of a JSON object. Raises MessageError for what it cannot use; unknown fields are refused, too."""
    try:
        do = read_field(value, "do", str)
        assert isinstance(value, dict)
        if do not in PARSERS:
            raise ValueError(f"do is {do[:40]!r}; use {', '.join(PARSERS)}")
        kinds, parse = PARSERS[do]
        unknown = [name for name in value if name != "do" and name not in kinds]
        if unknown:
            raise ValueError(f"{do} has no field {str(unknown[0])[:40]!r}; it takes {', '.join(kinds) or 'none'}")
        return parse({name: conform(value[name], kind, name) for name, kind in kinds.items() if name in value})
    except KeyError as error:
        raise MessageError(f"the message cannot be used: it has no {error.args[0]}") from None
    except (ValueError, ConfigError) as error:
        raise MessageError(f"the message cannot be used: {error}") from None


def as_one_line(text: str) -> str:
    """Put a prompt on one line, without control characters. Raises MessageError for an empty or a long one."""
    if len(text) > MAX_PROMPT:
        raise MessageError(f"the prompt has {len(text):,} characters; {MAX_PROMPT:,} at most are read")
    words = "".join(" " if unicodedata.category(char) == "Cc" else char for char in text).split()
    if not words:
        raise MessageError("the prompt is empty; say what is to be seen")
    return " ".join(words)


def _parse_say(fields: dict) -> Say:
    blocks, curve = fields.get("blend"), fields.get("curve")
    has_blend = blocks is not None or curve is not None
    word = fields.get("boundary", BLENDED if has_blend else "recache")
    if word != BLENDED and has_blend:
        raise ValueError(f"blend and curve belong to the boundary {BLENDED}, not to {word[:40]!r}")
    if word != BLENDED and (not word or word not in BOUNDARIES):
        raise ValueError(f"boundary is {word[:40]!r}; use {', '.join(filter(None, BOUNDARIES))} or {BLENDED}")
    blend = Blend(USUAL_BLEND if blocks is None else blocks, curve or Curve.LINEAR) if word == BLENDED else None
    boundary = BOUNDARIES.get(word, Boundary.RECACHE)
    return Say(fields["prompt"], boundary, fields.get("seed"), blend, fields.get("at"))


def _parse_rewind(fields: dict) -> RewindTo:
    if fields["to"] < 0:
        raise ValueError(f"to is {fields['to']}; use the number of a block, from 0")
    return RewindTo(fields["to"])


def _check_range(seed: int) -> None:
    try:
        check_seed(seed)
    except ConfigError as error:
        raise MessageError(str(error)) from None


def _check_time(seconds: float | None) -> None:
    if seconds is not None and not 0 <= seconds <= MAX_SECONDS:
        raise MessageError(f"the time is {seconds} s; use 0 to {MAX_SECONDS} s of the video")


SAY_FIELDS = {
    "prompt": str,
    "boundary": str,
    "blend": int | None,
    "curve": Curve | None,
    "seed": int | None,
    "at": float | None,
}
PARSERS: dict[str, tuple[dict, Callable[[dict], Message]]] = {
    "say": (SAY_FIELDS, _parse_say),
    "prepare": ({"prompt": str}, lambda fields: Prepare(fields["prompt"])),
    "pause": ({}, lambda fields: Pause()),
    "resume": ({}, lambda fields: Resume()),
    "rewind": ({"to": int}, _parse_rewind),
    "seed": ({"seed": int}, lambda fields: Reseed(fields["seed"])),
    "stop": ({"at": float | None}, lambda fields: Stop(fields.get("at"))),
    "finish": ({}, lambda fields: Finish()),
    "watch": ({"seconds": float, "viewer": str}, lambda fields: Playhead(fields["seconds"], fields["viewer"])),
}
"""What each message may have, and what makes it."""
