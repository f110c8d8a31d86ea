"""What waits to be read by the run that it was sent to."""

import threading
import time
from dataclasses import dataclass

from ..errors import MessageError
from .messages import Message, Playhead, Prepare

MAX_WAITING = 64  # messages
MAX_VIEWERS = 32


@dataclass(frozen=True, slots=True)
class Sent:
    """A message and when it came, in seconds of a monotonic clock."""

    message: Message
    time: float


class Inbox:
    """Takes messages from any thread for one reader.

    Of the places of a viewer, and of the prompts to prepare, only the last one waits.
    """

    def __init__(self) -> None:
        self._waiting: list[Sent] = []
        self._viewers: dict[str, Sent] = {}
        self._changed = threading.Condition()
        self._is_closed = False

    @property
    def is_closed(self) -> bool:
        """Whether the run is over."""
        return self._is_closed

    def put(self, message: Message, *, patience: float | None = 0) -> None:
        """Leave a message; wait for room so many seconds, or as long as the run lasts. Raises MessageError without."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self._has_room(message), patience)
            if self._is_closed:
                raise MessageError("this run is over; begin another one")
            if not self._has_room(message):
                waiting = f"{MAX_VIEWERS} viewers" if isinstance(message, Playhead) else f"{MAX_WAITING} messages"
                raise MessageError(f"{waiting} wait already; send fewer, or wait until a block is finished")
            sent = Sent(message, time.monotonic())
            if isinstance(message, Playhead):
                self._viewers[message.viewer] = sent
            else:
                if isinstance(message, Prepare):
                    self._waiting = [each for each in self._waiting if not isinstance(each.message, Prepare)]
                self._waiting.append(sent)
            self._changed.notify_all()

    def drain(self) -> list[Sent]:
        """Take out all messages, in the order in which they came; the places of viewers last."""
        with self._changed:
            drained = [*self._waiting, *self._viewers.values()]
            self._waiting, self._viewers = [], {}
            self._changed.notify_all()
            return drained

    def wait(self, seconds: float) -> None:
        """Wait until there is a message, or until `seconds` are over."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._viewers or self._is_closed, seconds)

    def close(self, *, only_if_empty: bool = False) -> bool:
        """Take no more messages; with `only_if_empty`, unless one waits that is not a viewer's. Returns if closed."""
        with self._changed:
            if not (only_if_empty and self._waiting):
                self._is_closed = True
                self._changed.notify_all()
            return self._is_closed

    def _has_room(self, message: Message) -> bool:
        if isinstance(message, Playhead):
            return message.viewer in self._viewers or len(self._viewers) < MAX_VIEWERS
        return len(self._waiting) < MAX_WAITING
