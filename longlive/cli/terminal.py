"""What the commands share: exit statuses, interrupts, and text that is safe to print."""

import logging
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import LongLiveError, escape_lines

# Exit statuses. The last two are those of a shell for SIGINT and SIGTERM.
FAILED, NOT_A_RECORDED_RUN, INTERRUPTED, TERMINATED = 1, 2, 130, 143


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived. Work is kept as on a Ctrl-C."""


@contextmanager
def catch_interrupts(raised: list[KeyboardInterrupt]) -> Iterator[None]:
    """Turn SIGTERM into an interrupt, so that as much work is kept as on Ctrl-C. Append both kinds to `raised`.

    Foreign code may turn an interrupt into another error: reading a safetensors file gives a ValueError.
    """

    def interrupt(number: int, _: object) -> None:
        raised.append(Terminated() if number == signal.SIGTERM else KeyboardInterrupt())
        raise raised[-1]

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [signal.SIGTERM]
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        numbers.append(signal.SIGINT)
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def choose_status(interrupt: KeyboardInterrupt) -> int:
    return TERMINATED if isinstance(interrupt, Terminated) else INTERRUPTED


def find_causes(error: BaseException | None) -> Iterator[LongLiveError]:
    """Yield our errors among this one and those that led to it, latest first.

    So an error of a clean-up does not hide the error before it. Skips errors that another was raised `from`.
    """
    is_explained = False  # whether the error just seen was raised from this one
    while error:
        if isinstance(error, LongLiveError) and not is_explained:
            yield error
        is_explained = error.__cause__ is not None
        error = error.__cause__ or error.__context__


class PlainFormatter(logging.Formatter):
    """Messages with control characters escaped: names and prompts come from files."""

    def format(self, record: logging.LogRecord) -> str:
        return escape_lines(super().format(record))


def say(text: object) -> None:
    """Write lines to standard output, with control characters escaped."""
    sys.stdout.write(f"{escape_lines(str(text))}\n")
