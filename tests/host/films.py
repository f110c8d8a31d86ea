"""Films that tests and benchmarks make in the real ComfyUI, cut short and make again."""

import shutil
import time
from pathlib import Path

import av
import pytest
from comfy import ComfyUI, Event, Graph, Interrupted
from graphs import node

PROMPTS = ("a red ring moves left at night", "a blue ring moves down at dusk")


def film(last: str, seed: int = 1, blocks: int = 1) -> Graph:
    """A graph that makes a film of three segments, each of so many blocks."""
    script = "\n".join(f"{blocks}b | {prompt}" for prompt in (*PROMPTS, last))
    return {
        "mini": node("LongLiveMiniature"),
        "session": node("LongLiveSession", model=["mini", 0], width=64, height=64, seed=seed),
        "timeline": node("LongLiveTimeline", session=["session", 0], clip=["mini", 1], script=script),
        "decode": node("LongLiveDecode", session=["timeline", 0], vae=["mini", 2], filename_prefix="film"),
    }


def folder(host: ComfyUI) -> Path:
    return host.base / "user" / "longlive"


def kept(host: ComfyUI, what: str) -> int:
    return sum(1 for _ in (folder(host) / what).glob("??/*.safetensors"))


def made(host: ComfyUI, graph: Graph) -> bytes:
    [file] = host.run(graph).outputs["decode"]["images"]
    return (host.output / file["subfolder"] / file["filename"]).read_bytes()


def made_again(host: ComfyUI, graph: Graph) -> bytes:
    """The film with nothing to fall back on."""
    shutil.rmtree(folder(host), ignore_errors=True)
    host.free()
    return made(host, graph)


def interrupted(host: ComfyUI, graph: Graph, where: str, value: int, delay: float = 0) -> Path:
    """Interrupt a node so many seconds after its progress has come to a value; the film that the node shows."""
    queued = host.queue(graph)

    def has_come(event: Event) -> bool:
        about = event.type == "progress" and event.data["prompt_id"] == queued and event.data["node"] == where
        return about and event.data["value"] >= value

    host.wait_for(has_come)
    time.sleep(delay)
    host.interrupt()
    with pytest.raises(Interrupted):
        host.wait(queued)
    shown = host.wait_for(
        lambda event: event.type == "executed" and event.data["prompt_id"] == queued and event.data["node"] == where
    )
    [file] = shown.data["output"]["images"]
    assert file["type"] == "temp"
    return host.base / "temp" / file["filename"]


def frames(path: Path) -> int:
    with av.open(path) as video:
        return sum(1 for _ in video.decode(video=0))
