"""What a second queue decodes, and what an interrupt leaves, in the real ComfyUI; counted in fragments, not seconds."""

import random
import shutil
from pathlib import Path

import av
import pytest
from comfy import ComfyUI, Event, Graph, Interrupted
from graphs import node

SEGMENTS = ("1b | a red ring moves left at night", "1b | a blue ring moves down at dusk")
BLOCKS = 3


def film(last: str, seed: int = 1) -> Graph:
    script = "\n".join((*SEGMENTS, f"1b | {last}"))
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


def interrupted(host: ComfyUI, graph: Graph, where: str, value: int) -> Path:
    """Interrupt a node when its progress has come to a value; the film that the node shows."""
    queued = host.queue(graph)

    def has_come(event: Event) -> bool:
        about = event.type == "progress" and event.data["prompt_id"] == queued and event.data["node"] == where
        return about and event.data["value"] >= value

    host.wait_for(has_come)
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


def test_an_edit_of_the_last_prompt_decodes_its_blocks_alone_also_after_a_restart(host):
    made_again(host, film("a green ring stays still by day"))
    assert kept(host, "fragments") == BLOCKS + 1  # and the end
    edited = made(host, film("a yellow square moves up by day"))
    assert kept(host, "fragments") == BLOCKS + 1 + 1 + 1
    host.stop()
    host.start()
    assert made(host, film("a yellow square moves up by day")) == edited
    assert kept(host, "fragments") == BLOCKS + 1 + 1 + 1
    assert made_again(host, film("a yellow square moves up by day")) == edited


def test_an_interrupt_in_decode_shows_the_film_so_far_and_the_next_queue_finishes_it(host):
    whole, before = (
        made_again(host, film("a green ring stays still by day", seed=2)),
        len([*host.output.rglob("*.mp4")]),
    )
    for value in random.Random(0).sample(range(1, BLOCKS), 1):
        shutil.rmtree(folder(host) / "fragments")
        host.free()
        shown = interrupted(host, film("a green ring stays still by day", seed=2), "decode", value)
        assert frames(shown) >= 9
        assert len([*host.output.rglob("*.mp4")]) == before  # no unfinished file among the finished ones
        found = kept(host, "fragments")
        assert value <= found <= BLOCKS
        assert made(host, film("a green ring stays still by day", seed=2)) == whole
        before += 1


def test_an_interrupt_in_sampling_shows_what_is_finished_and_the_next_queue_finishes_it(host):
    whole = made_again(host, film("a green ring stays still by day", seed=3))
    for value in random.Random(1).sample(range(5, 4 * BLOCKS), 1):
        shutil.rmtree(folder(host))
        host.free()
        shown = interrupted(host, film("a green ring stays still by day", seed=3), "timeline", value)
        assert frames(shown) == 3 * kept(host, "blocks")  # a picture for each latent
        assert made(host, film("a green ring stays still by day", seed=3)) == whole
