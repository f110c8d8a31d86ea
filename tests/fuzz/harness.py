"""Give inputs to a reader, one by one. Each must end in the right result or in one clear error of ours.

The seed, the name of the target and a number determine an input, so that each of them can be made again.
"""

import math
import random
import shutil
import signal
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from longlive.errors import LongLiveError

SEED = 8
KEPT = Path(tempfile.gettempdir()) / "longlive-fuzz"  # inputs whose outcome was unclear
LARGEST_KEPT = 16 << 20  # bytes
LONGEST_MESSAGE = 1000  # characters
JOINERS = "\u200c\u200d"  # not printable for Python, and harmless
WORK_SECONDS = 10  # of processor time for one input; the slowest reader needs hundreds of times less
STILL_SECONDS = 180  # of real time for one input; only a reader that waits without end takes longer
GROWTH_BYTES = 700 << 20  # memory that reading one input may take; the largest input has a megabyte

Attack = Callable[[random.Random, Path], None]


@dataclass(frozen=True, slots=True)
class Target:
    """What is attacked. `attack` makes one input in an empty folder and gives it to its reader.

    It returns where the result is right, lets the reader's LongLiveError pass, and raises Unclear for a wrong result.
    """

    name: str
    inputs: int  # of a whole run
    attack: Attack


class Unclear(AssertionError):
    """A reader gave a wrong result."""


class Hang(BaseException):
    """A reader did not come to an end; no `except Exception` may swallow it."""


@dataclass(slots=True)
class Outcomes:
    """The outcomes of the inputs of a target."""

    right: int = 0
    refused: int = 0
    unclear: list[str] = field(default_factory=list)

    @property
    def inputs(self) -> int:
        return self.right + self.refused + len(self.unclear)


def attack_all(target: Target, numbers: Sequence[int], seed: int = SEED) -> Outcomes:
    """Give the inputs of these numbers to a target."""
    outcomes = Outcomes()
    for number in numbers:
        attack_once(target, number, seed, outcomes)
    return outcomes


def attack_once(target: Target, number: int, seed: int, outcomes: Outcomes) -> None:
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        with limit_reader():
            target.attack(random.Random(f"{seed} {target.name} {number}"), folder)
        outcomes.right += 1
    except LongLiveError as error:
        fault = find_fault(str(error))
        if fault is None:
            outcomes.refused += 1
        else:
            outcomes.unclear.append(report_unclear(target, number, seed, folder, f"{type(error).__name__} {fault}"))
    except (Exception, Hang) as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{type(error).__name__}: {str(error)[:300]} ({Path(place.filename).name}:{place.lineno})"
        outcomes.unclear.append(report_unclear(target, number, seed, folder, text))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def find_fault(message: str) -> str | None:
    """Return what is wrong with a message that must be one clear sentence, or None."""
    if not message.strip():
        return "says nothing"
    if len(message) > LONGEST_MESSAGE:
        return f"says {len(message):,} characters: {message[:100]!r}"
    if any(not char.isprintable() and char not in JOINERS for char in message):
        return f"is not one line of printable text: {message[:300]!r}"
    return None


def report_unclear(target: Target, number: int, seed: int, folder: Path, text: str) -> str:
    """Write a line about an unclear outcome and keep its input."""
    kept = KEPT / f"{target.name.replace(' ', '_')}-{seed}-{number}"
    shutil.rmtree(kept, ignore_errors=True)
    regular = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    regular = [path for path in regular if path.stat().st_size <= LARGEST_KEPT]
    for path in regular:
        (kept / path.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, kept / path.relative_to(folder))
    again = f"python tests/fuzz/fuzz.py --seed {seed} --only {target.name!r} --input {number}"
    return f"{text}; again: {again}" + (f"; its files: {kept}" if regular else "")


@contextmanager
def limit_reader() -> Iterator[None]:
    """Turn endless work, endless waiting, gigabytes and warnings into errors."""

    def hang(number: int, _) -> None:
        raise Hang("it works without end" if number == signal.SIGPROF else "it waits without end")

    handlers = {number: signal.signal(number, hang) for number in (signal.SIGPROF, signal.SIGALRM)}
    Path("/proc/self/clear_refs").write_text("5")  # the peak of memory counts from here
    before = read_peak_bytes()
    signal.setitimer(signal.ITIMER_PROF, WORK_SECONDS)
    signal.setitimer(signal.ITIMER_REAL, STILL_SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if (grown := read_peak_bytes() - before) > GROWTH_BYTES:
        raise Unclear(f"it took {grown >> 20} MB")


def read_peak_bytes() -> int:
    """The most memory this process has had since its peak was last reset."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


def write_file(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def expect(right: bool, what: str) -> None:
    """Raise Unclear unless a result is right."""
    if not right:
        raise Unclear(what)


def expect_finite(values: object, what: str) -> None:
    """Raise Unclear where a number or tensor in nested values is NaN or infinite."""
    match values:
        case torch.Tensor():
            expect(not values.is_floating_point() or bool(values.float().isfinite().all()), f"{what} is not finite")
        case float():
            expect(math.isfinite(values), f"{what} is {values}")
        case dict():
            for name, value in values.items():
                expect_finite(value, f"{what} {name}")
        case list() | tuple():
            for value in values:
                expect_finite(value, what)
