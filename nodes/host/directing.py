"""Making a video that somebody directs inside ComfyUI, or that of a script, as a film that the node shows meanwhile."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import comfy.model_management
import comfy.sd

from ...longlive.errors import ScriptError
from ...longlive.live.director import Director
from ...longlive.live.pace import Pace
from ...longlive.live.take import Take, find_take, read_take, remove_old_takes
from ...longlive.session.session import Session
from ...longlive.units import convert_blocks_to_seconds
from ...longlive.video.film import Film
from .conditioning import encode_prompt
from .films import find_node_id, release_film, show_film
from .model import Model
from .rendering import open_renderer
from .runs import find_takes_folder, runs
from .sampling import open_sampler
from .watching import open_watched_film


@dataclass(frozen=True, slots=True)
class Directed:
    """What a run made: the video, its script, and its film with the id by which pages watch it."""

    session: Session
    script: str
    film: Film
    film_id: str


@dataclass(frozen=True, slots=True)
class Studio:
    """What makes a video: the network, the text encoder and the VAE, as ComfyUI loaded them."""

    model: Model
    clip: comfy.sd.CLIP
    vae: comfy.sd.VAE

    def direct(self, session: Session, script: str, address: str, longest: float) -> Directed:
        """Make the video of a script, then what somebody directs at `address`: `longest` seconds at most.

        A take is directed once: if the one at this address is over, what was recorded is made; if it was cut off, it
        goes on. Without an address, or with another script than the take began with, only the script is made.

        Raises ScriptError if there is nothing to make, and SessionError for a take that began with another session.
        """
        folder = find_takes_folder() / address
        if not address or (find_take(folder.parent, address) and read_take(folder)["script"] != script):
            return self._make(session, script, *open_watched_film())
        with open_take(folder, session, script) as take:
            if take.plan.status.is_over:
                return self._make(session, take.plan.script, address, take.film)
            begins = convert_blocks_to_seconds(len(session.blocks), session.config.block)
            with runs.announce(address) as inbox, self._open_director(session, take.film, take=take) as director:
                runs.publish(director.state)
                director.run(inbox, Pace(longest=begins + longest))
            return Directed(director.session, director.script, take.film, address)

    def _make(self, session: Session, script: str, film_id: str, film: Film) -> Directed:
        """Make the video of a script."""
        if not script.strip():
            raise ScriptError("there is nothing to make: press Direct in the node, or write a script, as 8s | a prompt")
        with self._open_director(session, film, script=script) as director:
            director.make_script()
        return Directed(director.session, director.script, film, film_id)

    @contextmanager
    def _open_director(
        self, session: Session, film: Film, *, script: str = "", take: Take | None = None
    ) -> Iterator[Director]:
        """Open a director whose film has all frames when the `with` block ends."""
        renderer = open_renderer(self.model, self.vae, session, film)
        passes = session.count_passes(1)  # nobody knows how many blocks come
        with open_sampler(self.model, session, passes, previews=False) as sampler:
            director = Director(
                session,
                sampler,
                partial(encode_prompt, self.clip, patcher=self.model),
                script=script,
                renderer=renderer,
                take=take,
                poll=comfy.model_management.throw_exception_if_processing_interrupted,
                on_change=runs.publish,
            )
            yield director
            director.complete_film()


@contextmanager
def open_take(folder: Path, session: Session, script: str) -> Iterator[Take]:
    """Open the take in a folder, or begin one there, after making room; pages may watch its film."""
    if not find_take(folder.parent, folder.name):
        for address in remove_old_takes(folder.parent):
            release_film(address)
    begin = Take.open if find_take(folder.parent, folder.name) else partial(Take.create, script=script)
    with begin(folder, session) as take:
        show_film(folder.name, take.film, node_id=find_node_id())
        yield take
