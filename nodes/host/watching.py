"""Watching a video while a node makes it: every finished block is rendered at once, into a film that the node shows.

The fragments are those that LongLive Decode takes, so nothing is decoded twice.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import comfy.sd

from ...longlive.errors import VideoError
from ...longlive.session.session import Session
from ...longlive.video.film import Film
from ...longlive.video.render import VideoRenderer
from .films import find_node_id, make_film_id, release_film, show_film
from .model import Model
from .paths import find_temporary_folder
from .rendering import open_renderer

log = logging.getLogger(__name__)

MAX_WATCHED, MAX_WATCHED_BYTES = 32, 4 << 30  # of the films in the temporary folder; the oldest go first

_watched: dict[str, Film] = {}  # by id, the oldest first


class Watcher:
    """Renders the finished blocks of a session into a film. If the disk refuses, the video is made without it."""

    def __init__(self, model: Model, vae: comfy.sd.VAE, session: Session) -> None:
        """Show the session's blocks. Raises WeightsError for a VAE that cannot decode them."""
        self.output: dict[str, list[str]] = {}  # what the page is told of the node: the film that it shows
        self._renderer: VideoRenderer | None = None
        with self._clear_on_refusal():
            film_id, film = open_watched_film()
            self._renderer = open_renderer(model, vae, session, film)
            self.output = {"longlive_film": [film_id]}
        self.show(session)

    def show(self, session: Session) -> None:
        """Append the blocks that the film does not have. Cancel ends it."""
        with self._clear_on_refusal():
            while self._renderer and self._renderer.num_blocks < len(session.blocks):
                self._renderer.render_block(session.blocks[self._renderer.num_blocks])

    def finish(self) -> None:
        """Append what the decoder still holds."""
        with self._clear_on_refusal():
            if self._renderer:
                self._renderer.finish()

    @contextmanager
    def _clear_on_refusal(self) -> Iterator[None]:
        """End the watching, and not the node, when the film cannot be written or decoded."""
        try:
            yield
        except VideoError as error:
            log.warning("%s; the node goes on, but its film ends here", error)
            self._renderer = None


def open_watched_film() -> tuple[str, Film]:
    """Begin a film in the temporary folder for the node that runs, and return it behind its id.

    Removes the oldest films if there are too many. Raises VideoError.
    """
    while len(_watched) >= MAX_WATCHED or sum(film.state.length for film in _watched.values()) > MAX_WATCHED_BYTES:
        oldest = next(iter(_watched))
        release_film(oldest)
        _watched.pop(oldest).discard()
    film_id = make_film_id()
    folder = find_temporary_folder() / "longlive" / film_id
    film = _watched[film_id] = Film.create(folder)
    show_film(film_id, film, node_id=find_node_id())
    return film_id, film
