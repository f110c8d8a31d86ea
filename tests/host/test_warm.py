"""A chain of samplers with a warm cache makes the passes of one timeline, and ComfyUI can free the cache."""

import json

import graphs
import pytest
from graphs import CLASSIC, FOX, OWL, STEPS, chain, chunk, make_node, save_latents, write_script
from host_messages import HostError, Interrupted
from host_process import ComfyUI
from host_state import count_alive, forget, is_nothing_alive, read_latents, remake, wait_for_previews
from hosts import NEWEST
from inside import call_inside
from model_files import GEOMETRY

from longlive.units import SIZE_STEP

NODES = 8  # their 24 frames are two windows
CHECKS = (
    "check_it_is_taken_out",
    "check_it_is_evicted",
    "check_it_belongs_to_one_model",
    "check_there_is_one",
    "check_nothing_is_kept_where_models_are_not",
)


def count_attention(graph: dict) -> dict:
    """Copy a graph with an attention that counts its calls; with it, no block is stored."""
    attention = make_node("TestAttention", model=["model", 0], fail_at=0)
    session = {**graph["session"], "inputs": {**graph["session"]["inputs"], "model": ["attention", 0]}}
    return {**graph, "attention": attention, "session": session}


def make_chain(count: int, seed: int, name: str, between: str = "") -> dict:
    """Make a chain of one block per node, perhaps with a `TestUnload` or a prompt with `keep` between two nodes."""
    graph = count_attention(chain((FOX, 1), (OWL, 1), seed=seed))
    for id in ("chunk0", "switch1", "chunk1"):
        del graph[id]
    before = "session"
    for i in range(count):
        if i and between == "keep":
            graph[f"switch{i}"] = graphs.switch(before, f"text{i % 2}")
            graph[f"switch{i}"]["inputs"]["boundary"] = "keep cache"
            before = f"switch{i}"
        elif i and between:
            graph[f"between{i}"] = make_node(between, value=[before, 0])
            before = f"between{i}"
        graph[f"chunk{i}"] = chunk(before, 1)
        before = f"chunk{i}"
    return save_latents(graph, before, name)


def make_timeline(count: int, seed: int, name: str, between: str = "") -> dict:
    """Make the same video with one Timeline node."""
    script = write_script([(FOX, count)])
    if between == "keep":
        script = "".join(f"1b keep | {(FOX, OWL)[i % 2]}\n" for i in range(count))
    graph = count_attention(chain((FOX, 1), seed=seed))
    del graph["chunk0"]
    graph["timeline"] = make_node("LongLiveTimeline", session=["session", 0], clip=["clip", 0], script=script)
    return save_latents(graph, "timeline", name)


def count_calls(host: ComfyUI) -> int:
    """Count the calls of the attention since the graph was queued."""
    return count_alive(host)["attention_calls"]


@pytest.mark.parametrize("between", ["", "keep"], ids=["no switch", "keep cache"])
def test_a_chain_of_samplers_makes_the_passes_of_one_timeline(host, between):
    whole = remake(host, make_timeline(NODES, 30, "whole", between), "whole")
    of_timeline = count_calls(host)
    pieces = remake(host, make_chain(NODES, 30, "pieces", between), "pieces")

    assert count_calls(host) == of_timeline >= 2 * GEOMETRY.num_layers * STEPS * NODES
    assert pieces.equal(whole)


def test_law_7_what_a_chain_leaves_warm_is_one_memory_and_free_frees_it(host):
    forget(host)
    empty = count_alive(host)
    graph = make_chain(3, 31, "left") | {"probe": make_node("TestProbe", value=["chunk2", 0])}
    warm = json.loads(host.run(graph).text("probe"))
    host.free()
    freed = count_alive(host)

    assert (warm["caches"], warm["warm"]) == (0, GEOMETRY.num_layers)
    assert warm["tensor_bytes"] > empty["tensor_bytes"]
    assert (freed["caches"], freed["warm"]) == (0, 0)
    assert freed["tensor_bytes"] <= empty["tensor_bytes"]


def test_a_cache_that_the_host_freed_is_rebuilt_and_the_video_is_the_same(host):
    whole = remake(host, make_timeline(6, 32, "undisturbed"), "undisturbed")
    of_timeline = count_calls(host)
    pieces = remake(host, make_chain(6, 32, "disturbed", "TestUnload"), "disturbed")

    assert count_alive(host)["warm_after_unload"] == 0
    assert count_calls(host) > of_timeline
    assert pieces.equal(whole)


def test_comfyui_frees_a_warm_cache_when_it_would_unload_a_model(host):
    call_inside(host.host, "warm", *CHECKS)


@pytest.mark.parametrize("flags", [("--cache-none",), CLASSIC, ("--cache-lru", "2")], ids=lambda flags: flags[0])
def test_a_chain_is_warm_whatever_the_host_remembers(boot, newest, flags):
    host = boot(NEWEST, *flags)
    calls = {}
    for name, graph in (("whole", make_timeline(5, 33, "whole")), ("pieces", make_chain(5, 33, "pieces"))):
        forget(host)
        host.run(graph)
        calls[name] = count_calls(host)

    assert calls["pieces"] == calls["whole"] >= 2 * GEOMETRY.num_layers * STEPS * 5
    assert read_latents(host, "pieces").equal(read_latents(host, "whole"))
    if "none" in flags[0]:  # the host forgets the MODEL, and its memory dies with it
        assert is_nothing_alive(host)


def test_two_videos_made_in_turn_are_each_right(host):
    forget(host)
    for length in (1, 2, 3):
        host.run(make_chain(length, 34, "first"))
        host.run(make_chain(length, 35, "second"))
    first, second = read_latents(host, "first"), read_latents(host, "second")

    assert first.equal(remake(host, make_timeline(3, 34, "first"), "first"))
    assert second.equal(remake(host, make_timeline(3, 35, "second"), "second"))


def test_of_two_endings_of_one_session_each_is_right(host):
    graph = make_chain(2, 36, "trunk")
    for i in (0, 1):
        graph |= save_latents({f"end{i}": chunk("chunk1", 2 + i)}, f"end{i}", f"end{i}")
    forget(host)
    host.run(graph)
    whole = remake(host, make_timeline(5, 36, "longest"), "longest")

    assert read_latents(host, "end1").equal(whole)
    assert read_latents(host, "end0").equal(whole[:, :, :12])


@pytest.mark.parametrize("block", [2, 3])
def test_law_7_a_sampler_that_fails_frees_the_memory_it_took_over(host, block):
    graph = make_chain(4, 37, "failed")
    of_blocks = 2 * GEOMETRY.num_layers * STEPS * block
    graph["attention"]["inputs"]["fail_at"] = of_blocks
    forget(host)

    with pytest.raises(HostError, match="TestAttention was told to fail"):
        host.run(graph)
    assert is_nothing_alive(host)


def test_law_7_an_interrupted_sampler_frees_the_memory_it_took_over(host):
    size = {"width": 4 * SIZE_STEP, "height": 4 * SIZE_STEP}
    graph = chain((FOX, 2), seed=38, **size) | {"more": chunk("chunk0", 40)}
    graph = save_latents(graph, "more", "stopped")
    forget(host)
    prompt_id = host.queue(graph)
    wait_for_previews(host, prompt_id, 3 * STEPS)
    host.interrupt()
    with pytest.raises(Interrupted, match="LongLiveChunkSampler"):
        host.wait(prompt_id)

    assert is_nothing_alive(host)


def test_a_video_that_continues_after_an_error_elsewhere_is_right(host):
    """It continues with the warm cache of the sampler before the failing node."""
    graph = make_chain(3, 39, "kept")
    failing = {**graph, "fail": make_node("TestFail", value=["chunk2", 0], fail=True), "more": chunk("fail", 1)}
    forget(host)
    with pytest.raises(HostError, match="TestFail was told"):
        host.run(save_latents(failing, "more", "never"))
    host.run(make_chain(4, 39, "kept"))
    of_chain = count_calls(host)

    assert read_latents(host, "kept").equal(remake(host, make_timeline(4, 39, "whole"), "whole"))
    assert count_calls(host) == of_chain
