"""The directed runs of this process: each is found by its take, and hears what is sent to that address.

A take is 128 random bits that a page chose, and nothing lists them: who knows a take may direct it.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ...longlive.errors import SessionError, VideoError
from ...longlive.live.inbox import Inbox
from ...longlive.live.pace import Status
from ...longlive.live.take import describe_film, find_take, is_owned, read_take
from ...longlive.video.film import Film
from .films import find_film, find_server, show_film
from .sampling import find_store_folder

RUN_EVENT = "longlive.live"  # on the host's socket: the state of a run has changed


class Runs:
    """The inboxes and the newest states of the runs that can be spoken to now, by take."""

    def __init__(self) -> None:
        self._inboxes: dict[str, Inbox] = {}
        self._states: dict[str, dict] = {}

    @contextmanager
    def announce(self, take: str) -> Iterator[Inbox]:
        """Let a take be spoken to until the `with` block ends. Raises SessionError if somebody directs it already."""
        if take in self._inboxes:
            raise SessionError(f"the take {take} is being directed already; stop it first, or begin another one")
        inbox = self._inboxes[take] = Inbox()
        try:
            yield inbox
        finally:
            inbox.close()
            del self._inboxes[take]
            self._states.pop(take, None)

    def publish(self, state: dict) -> None:
        """Keep the newest state of a run, and tell all pages in a few bytes that there is one."""
        take = state["take"]
        if take in self._inboxes:
            self._states[take] = state
            if server := find_server():
                server.send_sync(RUN_EVENT, {name: state[name] for name in ("take", "version", "status")})

    def find(self, take: str) -> Inbox | None:
        """Find the inbox of a run; None if nobody directs the take now."""
        return self._inboxes.get(take)

    def describe(self, take: str) -> dict | None:
        """Describe a run as it is now, or as it ended; None where none has begun. Raises SessionError if it is damaged.

        Pages may watch the film of a run that ended in an earlier process from then on.
        """
        if state := self._states.get(take):
            return state
        folder = find_take(find_takes_folder(), take)
        saved = read_take(folder)["state"] if folder else {}
        if not (folder and saved):
            return None
        status = Status(saved["status"])
        ended = status if status.is_over else Status.INTERRUPTED  # the process was killed
        return saved | {"status": ended.value} | describe_film(self._find_film(take, folder))

    def _find_film(self, take: str, folder: Path) -> Film | None:
        """Find the film of a take; None if it is damaged, or if another process makes it."""
        film = find_film(take)
        if film is None and not is_owned(folder):
            with suppress(VideoError):
                film = Film.open(folder)
                show_film(take, film)
        return film


runs = Runs()


def find_takes_folder() -> Path:
    return find_store_folder() / "takes"
