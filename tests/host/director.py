"""Somebody who directs a run of LongLive Live over HTTP, as the panel does."""

import json
import secrets
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping

from graphs import make_node
from host_messages import Graph, History
from host_process import ComfyUI
from patience import Patience

NODE = "live"


def make_live_graph(*, take: str = "", script: str = "", seed: int = 42, longest: float = 60) -> dict:
    """Make the graph of a directed run with the miniature."""
    return {
        "small": make_node("LongLiveMiniature"),
        "session": make_node("LongLiveSession", model=["small", 0], width=64, height=64, seed=seed),
        NODE: make_node(
            "LongLiveLive",
            session=["session", 0],
            clip=["small", 1],
            vae=["small", 2],
            script=script,
            take=take,
            longest=longest,
            filename_prefix="video/live",
        ),
    }


class RemoteDirector:
    """Directs one take; a viewer who has always seen the whole film."""

    def __init__(self, host: ComfyUI, take: str = "") -> None:
        self.host, self.take, self.viewer = host, take or secrets.token_hex(16), secrets.token_hex(8)
        self.prompt_id = ""

    def begin(self, graph: Graph) -> None:
        """Queue a graph with this take, and wait until its run can be spoken to."""
        self.prompt_id = self.host.queue(graph)
        self.wait_until(lambda state: "script" in state)

    def send(self, **message: object) -> None:
        """Send a message. It must be accepted."""
        status, answer = self.post(json.dumps(message).encode())
        assert (status, answer) == (200, {"accepted": True}), answer

    def post(self, body: bytes, kind: str = "application/json", **headers: str) -> tuple[int, dict]:
        """Send any body, and return the status and the answer."""
        url = f"{self.host.address}/longlive/live/{self.take}"
        request = urllib.request.Request(url, data=body, headers={"Content-Type": kind, **headers})
        try:
            with urllib.request.urlopen(request) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                content = error.read()
            return error.code, json.loads(content) if content.startswith(b"{") else {"error": content.decode()}

    def read_state(self) -> dict | None:
        """Read the state of the take; None if the host does not know it."""
        try:
            with urllib.request.urlopen(f"{self.host.address}/longlive/live/{self.take}") as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 404:
                return None
            raise

    def wait_until(self, condition: Callable[[Mapping], bool], *, is_watched: bool = True) -> dict:
        """Wait until the state fulfils a condition; meanwhile see the whole film, unless told otherwise."""
        patience = Patience(self.host.pid, f"the take {self.take}")
        while True:
            state = self.read_state() or {}
            if state and condition(state):
                return state
            if state and is_watched:
                [*_, (_, _, first, frames)] = state["pieces"] or [(0, 0, 0, 0)]
                self.post(json.dumps({"do": "watch", "seconds": (first + frames) / 16, "viewer": self.viewer}).encode())
            patience.check()
            time.sleep(0.02)

    def wait_for_blocks(self, count: int) -> dict:
        return self.wait_until(lambda state: state.get("blocks", 0) >= count)

    def end(self) -> History:
        """Wait for the end of the prompt."""
        return self.host.wait(self.prompt_id)


def read_film(host: ComfyUI, film_id: str) -> bytes:
    return host.get(f"/longlive/film/{film_id}/film.mp4")
