"""The errors a user can cure, each saying what was found, what was expected and the cure.

LongLiveError
├── ConfigError        a setting that breaks a rule of the method
├── ScriptError        a timeline script that cannot be read
│   └── TimelineError  one that does not parse; names line and column
├── WeightsError       a weights file or a recorded run that is not what it claims to be
├── ConditioningError  a prompt embedding that does not fit the model
├── SessionError       a session file, or a session continued with what it was not made for
├── PositionError      a video longer than the table of absolute positions
├── SamplingError      a block that cannot be computed, or came out as NaN or infinity
├── StoreError         a session that cannot be written
├── VideoError         a video file that cannot be written
├── EvaluationError    what cannot be measured, or a report that cannot be written
├── MessageError       what a run cannot be told
├── DataError          prompts or prompt pairs that cannot be tuned on
└── TuningError        a tuning that cannot begin, continue or be resumed
"""

from collections.abc import Iterable
from functools import partial

MAX_MESSAGE = 900  # characters
MAX_SHOWN = 200  # characters of a text from outside that a message shows
JOINERS = "\u200c\u200d"  # between letters of some scripts and parts of an emoji; harmless
SHOWN_NAME = 80  # characters of a name in a message


class LongLiveError(Exception):
    """Base of everything the user can cure. Its text is one printable line, even if it quotes a name or a file."""

    def __str__(self) -> str:
        return shorten(super().__str__(), MAX_MESSAGE)

    def __init_subclass__(cls) -> None:
        cls.__module__ = "longlive"  # ComfyUI shows the module of an error; the real one begins with the pack's path


class ConfigError(LongLiveError):
    """A setting breaks a rule of the method."""


class ScriptError(LongLiveError):
    """A timeline script cannot be read."""


class TimelineError(ScriptError):
    """A timeline script does not parse."""

    def __init__(self, problem: str, *, line: int, column: int) -> None:
        super().__init__(f"line {line}, column {column}: {problem}")
        self.problem, self.line, self.column = problem, line, column

    def __reduce__(self) -> tuple:
        """Let another process make the error again, which needs the names of the arguments."""
        return partial(type(self), line=self.line, column=self.column), (self.problem,)


class WeightsError(LongLiveError):
    """A weights file or a recorded run is not what it claims to be."""


class ConditioningError(LongLiveError):
    """A prompt embedding does not fit the model."""


class SessionError(LongLiveError):
    """A session is continued with something it was not made for."""


class PositionError(LongLiveError):
    """A video is longer than the table of absolute positions."""


class SamplingError(LongLiveError):
    """A block cannot be computed as its key says, or came out as NaN or infinity."""


class StoreError(LongLiveError):
    """A session cannot be written."""


class VideoError(LongLiveError):
    """A video file cannot be written."""


class EvaluationError(LongLiveError):
    """A video cannot be measured, or its report cannot be written."""


class MessageError(LongLiveError):
    """A message cannot be used, or not now."""


class DataError(LongLiveError):
    """Prompts or prompt pairs cannot be tuned on."""


class TuningError(LongLiveError):
    """A tuning cannot begin, continue or be resumed."""


def escape(text: str) -> str:
    """Escape every character that could move a terminal's cursor, colour it or reverse its lines."""
    return "".join(char if char.isprintable() or char in JOINERS else repr(char)[1:-1] for char in text)


def escape_lines(text: str) -> str:
    """Escape text as `escape` does, but keep its line breaks."""
    return "\n".join(map(escape, text.split("\n")))


def shorten(value: object, limit: int = MAX_SHOWN) -> str:
    """Give the text of a value for a message: printable, and at most `limit` characters."""
    shown = escape(str(value)[: limit + 1])
    return shown if len(shown) <= limit else f"{shown[:limit]}..."


def list_names(names: Iterable, limit: int = 4) -> str:
    """List the first few names for a message, and say how many more there are."""
    names = list(names)
    if not names:
        return "nothing"
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    shown = (name if isinstance(name, str | int | float) else type(name).__name__ for name in names[:limit])
    return ", ".join(shorten(name, SHOWN_NAME) for name in shown) + more
