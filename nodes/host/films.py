"""The films that pages of this process may watch, by their ids.

An id is 32 random hex digits, and nothing lists them: who knows an id may watch. For every change of a film the host's
socket carries a small event and never pictures, because a page that stops reading would then stall all others.
"""

import secrets
from functools import partial

from comfy_execution.utils import get_executing_context
from server import PromptServer

from ...longlive.video.film import Film

EVENT = "longlive.film"
FILM_ID = "[0-9a-f]{32}"  # a pattern

_films: dict[str, Film] = {}


def make_film_id() -> str:
    return secrets.token_hex(16)


def show_film(film_id: str, film: Film, *, node_id: str = "") -> None:
    """Let pages watch a film under an id from now on; tell them of it and of each of its changes, for a node."""
    film.on_change = partial(report_change, film_id, film, node_id)
    _films[film_id] = film
    film.on_change()


def find_film(film_id: str) -> Film | None:
    return _films.get(film_id)


def release_film(film_id: str) -> None:
    """Let pages watch a film no more. Its files stay."""
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


def find_node_id() -> str:
    """Find the id of the node that runs; empty outside of one."""
    context = get_executing_context()
    return context.node_id if context else ""


def find_server() -> PromptServer | None:
    """Find the running server; there is none where nodes are loaded by another program."""
    return getattr(PromptServer, "instance", None)
