"""A chain of samplers goes on with a warm memory: the passes of one timeline, no byte that ComfyUI cannot have back."""

import json

import graphs
import pytest
from comfy import ComfyUI, HostError, Interrupted
from graphs import chain, chunk, node, saved, scripted
from hosts import NEWEST
from inside import inside
from model_files import GEOMETRY
from test_workflows import FOX, OWL, STEPS, alive, forget, latents, made_anew, nothing_is_alive, nth_preview

from longlive.units import SIZE_STEP

NODES = 20
CHECKS = (
    "check_it_is_taken_out",
    "check_it_is_evicted",
    "check_it_belongs_to_one_model",
    "check_there_is_one",
    "check_nothing_is_kept_where_models_are_not",
)


def counted(graph: dict) -> dict:
    """The graph with an attention that counts its calls; it also keeps blocks out of the store."""
    attention = node("TestAttention", model=["model", 0], fail_at=0)
    session = {**graph["session"], "inputs": {**graph["session"]["inputs"], "model": ["attention", 0]}}
    return {**graph, "attention": attention, "session": session}


def samplers(count: int, seed: int, name: str, between: str = "") -> dict:
    """A block a node; between two nodes there may be a `TestUnload` or a prompt that keeps the cache."""
    graph = counted(chain((FOX, 1), (OWL, 1), seed=seed))
    for id in ("chunk0", "switch1", "chunk1"):
        del graph[id]
    before = "session"
    for i in range(count):
        if i and between == "keep":
            graph[f"switch{i}"] = graphs.switch(before, f"text{i % 2}")
            graph[f"switch{i}"]["inputs"]["boundary"] = "keep cache"
            before = f"switch{i}"
        elif i and between:
            graph[f"between{i}"] = node(between, value=[before, 0])
            before = f"between{i}"
        graph[f"chunk{i}"] = chunk(before, 1)
        before = f"chunk{i}"
    return saved(graph, before, name)


def timeline(count: int, seed: int, name: str, between: str = "") -> dict:
    """The same by one node."""
    script = scripted([(FOX, count)])
    if between == "keep":
        script = "".join(f"1b keep | {(FOX, OWL)[i % 2]}\n" for i in range(count))
    graph = counted(chain((FOX, 1), seed=seed))
    del graph["chunk0"]
    graph["timeline"] = node("LongLiveTimeline", session=["session", 0], clip=["clip", 0], script=script)
    return saved(graph, "timeline", name)


def calls(host: ComfyUI) -> int:
    """Of the attention, since the graph was queued."""
    return alive(host)["attention_calls"]


@pytest.mark.parametrize("between", ["", "keep"], ids=["no switch", "keep cache"])
def test_a_chain_of_twenty_samplers_makes_the_passes_of_one_timeline(host, between):
    whole = made_anew(host, timeline(NODES, 30, "whole", between), "whole")
    of_timeline = calls(host)
    pieces = made_anew(host, samplers(NODES, 30, "pieces", between), "pieces")

    assert calls(host) == of_timeline >= 2 * GEOMETRY.num_layers * STEPS * NODES
    assert pieces.equal(whole)


def test_law_7_what_a_chain_leaves_warm_is_one_memory_and_free_frees_it(host):
    forget(host)
    empty = alive(host)
    graph = samplers(3, 31, "left") | {"probe": node("TestProbe", value=["chunk2", 0])}
    warm = json.loads(host.run(graph).text("probe"))
    host.free()
    freed = alive(host)

    assert (warm["caches"], warm["warm"]) == (0, GEOMETRY.num_layers)
    assert warm["tensor_bytes"] > empty["tensor_bytes"]
    assert (freed["caches"], freed["warm"]) == (0, 0)
    assert freed["tensor_bytes"] <= empty["tensor_bytes"]


def test_a_memory_that_was_taken_back_is_rebuilt_and_the_video_is_the_same(host):
    whole = made_anew(host, timeline(6, 32, "undisturbed"), "undisturbed")
    of_timeline = calls(host)
    pieces = made_anew(host, samplers(6, 32, "disturbed", "TestUnload"), "disturbed")

    assert alive(host)["warm_after_unload"] == 0
    assert calls(host) > of_timeline
    assert pieces.equal(whole)


def test_comfyui_takes_a_warm_memory_back_as_it_unloads_a_model(host):
    inside(host.host, "warm", *CHECKS)


@pytest.mark.parametrize("flags", [("--cache-none",), ("--cache-classic",), ("--cache-lru", "2")], ids=" ".join)
def test_a_chain_is_warm_whatever_the_host_remembers(boot, newest, flags):
    host = boot(NEWEST, *flags)
    whole = made_anew(host, timeline(5, 33, "whole"), "whole")
    of_timeline = calls(host)
    pieces = made_anew(host, samplers(5, 33, "pieces"), "pieces")

    assert calls(host) == of_timeline
    assert pieces.equal(whole)
    if "none" in flags[0]:  # the host forgets the MODEL, and its memory dies with it
        assert nothing_is_alive(host)


def test_two_videos_made_in_turn_are_each_right(host):
    forget(host)
    for length in (1, 2, 3):
        host.run(samplers(length, 34, "first"))
        host.run(samplers(length, 35, "second"))
    first, second = latents(host, "first"), latents(host, "second")

    assert first.equal(made_anew(host, timeline(3, 34, "first"), "first"))
    assert second.equal(made_anew(host, timeline(3, 35, "second"), "second"))


def test_of_two_endings_of_one_session_each_is_right(host):
    graph = samplers(2, 36, "trunk")
    for i in (0, 1):
        graph |= saved({f"end{i}": chunk("chunk1", 2 + i)}, f"end{i}", f"end{i}")
    forget(host)
    host.run(graph)
    whole = made_anew(host, timeline(5, 36, "longest"), "longest")

    assert latents(host, "end1").equal(whole)
    assert latents(host, "end0").equal(whole[:, :, :12])


@pytest.mark.parametrize("block", [2, 3])
def test_law_7_a_sampler_that_fails_frees_the_memory_it_took_over(host, block):
    graph = samplers(4, 37, "failed")
    of_blocks = 2 * GEOMETRY.num_layers * STEPS * block
    graph["attention"]["inputs"]["fail_at"] = of_blocks
    forget(host)

    with pytest.raises(HostError, match="TestAttention was told to fail"):
        host.run(graph)
    assert nothing_is_alive(host)


def test_law_7_an_interrupted_sampler_frees_the_memory_it_took_over(host):
    size = {"width": 4 * SIZE_STEP, "height": 4 * SIZE_STEP}
    graph = chain((FOX, 2), seed=38, **size) | {"more": chunk("chunk0", 40)}
    graph = saved(graph, "more", "stopped")
    forget(host)
    prompt_id = host.queue(graph)
    nth_preview(host, prompt_id, 3 * STEPS)
    host.interrupt()
    with pytest.raises(Interrupted, match="LongLiveChunkSampler"):
        host.wait(prompt_id)

    assert nothing_is_alive(host)


def test_a_video_that_goes_on_after_an_error_elsewhere_is_right(host):
    """It goes on warm: the sampler before the failing node ended well."""
    graph = samplers(3, 39, "kept")
    failing = {**graph, "fail": node("TestFail", value=["chunk2", 0], fail=True), "more": chunk("fail", 1)}
    forget(host)
    with pytest.raises(HostError, match="TestFail was told"):
        host.run(saved(failing, "more", "never"))
    host.run(samplers(4, 39, "kept"))
    of_chain = calls(host)

    assert latents(host, "kept").equal(made_anew(host, timeline(4, 39, "whole"), "whole"))
    assert calls(host) == of_chain
