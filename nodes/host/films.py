"""The films that pages of this process may watch, by their ids.

An id is 32 random hex digits, and nothing lists them: who knows an id may watch. For every change of a film the host's
socket carries a small event and never pictures, because a page that stops reading would then stall all others.
"""

import secrets
import threading
from functools import partial
from pathlib import Path

from server import PromptServer

from ...longlive.video.film import Film

EVENT = "longlive.film"
FILM_ID = "[0-9a-f]{32}"  # a pattern

_films: dict[str, Film] = {}
_lock = threading.Lock()


def make_film_id() -> str:
    return secrets.token_hex(16)


def open_film(film_id: str, folder: Path, *, node_id: str = "") -> Film:
    """Open the film in a folder, or begin one there; pages may watch it, and its changes are announced for a node.

    A film that is open already is the same object, now announced for this node. Raises VideoError.
    """
    with _lock:
        film = _films.get(film_id)
        if not (film and film.folder == folder and film.path.exists()):
            film = _films[film_id] = Film.find(folder)
        film.on_change = partial(report_change, film_id, film, node_id)
    film.on_change()
    return film


def find_film(film_id: str) -> Film | None:
    return _films.get(film_id)


def release_film(film_id: str) -> None:
    """Let pages watch a film no more. Its files stay."""
    with _lock:
        _films.pop(film_id, None)


def report_change(film_id: str, film: Film, node_id: str) -> None:
    """Tell all pages the newest piece of a film, in at most 300 bytes; the number -1 is that of an empty film."""
    if server := find_server():
        state = film.state
        event = {"id": film_id, "node": node_id, "version": state.version, "number": len(state.pieces) - 1, "count": 0}
        if state.pieces:
            newest = state.pieces[-1]
            event |= {"count": newest.count, "first_frame": newest.first_frame, "num_frames": newest.num_frames}
        server.send_sync(EVENT, event)


def find_server() -> PromptServer | None:
    """Find the running server; there is none where nodes are loaded by another program."""
    return getattr(PromptServer, "instance", None)
