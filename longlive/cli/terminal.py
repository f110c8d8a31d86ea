"""What the commands share: exit statuses, interrupts, and text that is safe to print."""

import logging
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import LongLiveError, escape_lines

log = logging.getLogger(__name__)

# Exit statuses. The last two are those of a shell for SIGINT and SIGTERM.
FAILED, NOT_A_RECORDED_RUN, INTERRUPTED, TERMINATED = 1, 2, 130, 143


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived. Work is kept as on a Ctrl-C."""


class Interrupts:
    """Ctrl-C and SIGTERM while a command runs; as much work is kept on the one as on the other.

    `caught` holds all of them: foreign code may turn an interrupt into another error, as reading a safetensors file
    does, which gives a ValueError.
    """

    def __init__(self) -> None:
        self.caught: list[KeyboardInterrupt] = []
        self._holds_back = False

    @contextmanager
    def catch(self) -> Iterator[None]:
        """Raise each interrupt where the program is, until the block ends. Does nothing outside the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = [signal.SIGTERM]
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            numbers.append(signal.SIGINT)
        before = {number: signal.signal(number, self._interrupt) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def hold_back(self) -> Iterator[None]:
        """Catch the first interrupt without raising it until the block ends: some work stops best between two steps."""
        self._holds_back = True
        try:
            yield
        finally:
            self._holds_back = False

    def _interrupt(self, number: int, _: object) -> None:
        self.caught.append(Terminated() if number == signal.SIGTERM else KeyboardInterrupt())
        if self._holds_back and len(self.caught) == 1:
            log.warning("stopping after this step; interrupt again to stop at once")
            return
        raise self.caught[-1]


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
    """Write lines to standard output at once, with control characters escaped."""
    sys.stdout.write(f"{escape_lines(str(text))}\n")
    sys.stdout.flush()
