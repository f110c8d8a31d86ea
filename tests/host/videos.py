"""Videos that tests and benchmarks make in a real ComfyUI, interrupt and make again."""

import time
from pathlib import Path

import av
import pytest
from graphs import make_node
from host_messages import Event, Graph, History, Interrupted
from host_process import ComfyUI
from host_state import forget

PROMPTS = ("a red ring moves left at night", "a blue ring moves down at dusk")


def make_video_graph(last: str, seed: int = 1, blocks: int = 1) -> Graph:
    """Make the graph of a video of three segments, each of `blocks` blocks."""
    script = "\n".join(f"{blocks}b | {prompt}" for prompt in (*PROMPTS, last))
    return {
        "mini": make_node("LongLiveMiniature"),
        "session": make_node("LongLiveSession", model=["mini", 0], width=64, height=64, seed=seed),
        "timeline": make_node("LongLiveTimeline", session=["session", 0], clip=["mini", 1], script=script),
        "decode": make_node("LongLiveDecode", session=["timeline", 0], vae=["mini", 2], filename_prefix="video"),
    }


def make_video(host: ComfyUI, graph: Graph) -> bytes:
    return read_video(host, host.run(graph))


def read_video(host: ComfyUI, history: History) -> bytes:
    [file] = history.outputs["decode"]["images"]
    return (host.output / file["subfolder"] / file["filename"]).read_bytes()


def remake_video(host: ComfyUI, graph: Graph) -> bytes:
    """Make the video again, with all stored work and the host's cache removed."""
    forget(host)
    return make_video(host, graph)


def interrupt_node(host: ComfyUI, graph: Graph, where: str, value: int, delay: float = 0) -> Path:
    """Interrupt node `where` `delay` seconds after its progress reached `value`; return the video that it shows."""
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


def count_frames(path: Path) -> int:
    with av.open(path) as video:
        return sum(1 for _ in video.decode(video=0))
