"""The errors a user can cure, each saying what was found, what was expected and the cure.

LongLiveError
├── ConfigError        a setting that breaks a rule of the method
├── ScriptError        a timeline script that cannot be read
│   └── TimelineError  one that does not parse; names line and column
├── CheckpointError    a file that is not the weights or the run it claims to be
├── ConditioningError  a prompt embedding the model cannot take
├── SessionError       a session file, or a session continued with what it was not made for
├── PositionError      the table of absolute positions has ended
├── SamplingError      a block that came out as NaN or infinity
├── StoreError         a session that cannot be written
├── VideoError         a video file that cannot be written
├── EvaluationError    what cannot be measured, or a report that cannot be written
├── DataError          prompts or prompt pairs that cannot be tuned on
└── TuningError        a tuning that cannot begin, go on or be resumed
"""

from .printable import brief

MAX_MESSAGE = 900  # characters


class LongLiveError(Exception):
    """Base of everything the user can cure. Its text is one printable line, whatever a name or a file brought in."""

    def __str__(self) -> str:
        return brief(super().__str__(), MAX_MESSAGE)

    def __init_subclass__(cls) -> None:
        cls.__module__ = "longlive"  # ComfyUI shows it, and imports packs under the path of their folder


class ConfigError(LongLiveError):
    """A setting breaks a rule of the method."""


class ScriptError(LongLiveError):
    """A timeline script cannot be read."""


class TimelineError(ScriptError):
    """A timeline script does not parse."""

    def __init__(self, problem: str, *, line: int, column: int) -> None:
        super().__init__(f"line {line}, column {column}: {problem}")
        self.problem, self.line, self.column = problem, line, column


class CheckpointError(LongLiveError):
    """A file is not the weights it claims to be."""


class ConditioningError(LongLiveError):
    """A prompt embedding does not fit the model."""


class SessionError(LongLiveError):
    """A session is continued with something it was not made for."""


class PositionError(LongLiveError):
    """The table of absolute positions has ended."""


class SamplingError(LongLiveError):
    """A block came out as NaN or infinity."""


class StoreError(LongLiveError):
    """A session cannot be written."""


class VideoError(LongLiveError):
    """A video file cannot be written."""


class EvaluationError(LongLiveError):
    """A video cannot be measured, or its report not be written."""


class DataError(LongLiveError):
    """Prompts or prompt pairs cannot be tuned on."""


class TuningError(LongLiveError):
    """A tuning cannot begin, go on or be resumed."""
