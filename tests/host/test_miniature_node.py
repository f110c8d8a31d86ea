"""The trained miniature in ComfyUI: ordinary files for its loaders, a node that needs none, words it says it knows."""

import json

import pytest
from graphs import WORKFLOWS, make_node, read_example
from host_messages import HostError
from hosts import NEWEST, OLDEST
from inside import call_inside

from longlive.miniature.grammar import find_problems
from longlive.session.timeline import parse_timeline
from longlive.tuning.prompt_pairs import parse_pairs

TOLERANCE = 1e-4
RING = "a red ring moves left at night from the east"
CHECKS = ("check_clip", "check_damaged_files_are_refused")
LOADERS = {"LongLiveModelLoader", "CLIPLoader", "VAELoader"}
MUTED = 2

each_workflow = pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)


@pytest.mark.parametrize("version", [OLDEST, NEWEST], ids=lambda host: host.version)
def test_its_files_are_those_of_any_model(version):
    differences, *_ = call_inside(version, "miniature", "check_stock_loaders", *CHECKS)

    assert max(differences.values()) <= TOLERANCE


def make_stock_graph(text: str) -> dict:
    """A graph of stock nodes behind ours."""
    wires = {"model": ["miniature", 0], "positive": ["text", 0], "negative": ["text", 0], "latent_image": ["empty", 0]}
    settings = {"steps": 2, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    return {
        "miniature": make_node("LongLiveMiniature"),
        "text": make_node("CLIPTextEncode", clip=["miniature", 1], text=text),
        "empty": make_node("EmptyHunyuanLatentVideo", width=64, height=64, length=9, batch_size=1),
        "sample": make_node("KSampler", seed=1, **settings, **wires),
        "decode": make_node("VAEDecode", samples=["sample", 0], vae=["miniature", 2]),
        "image": make_node("SaveImage", images=["decode", 0], filename_prefix="miniature"),
    }


def test_it_serves_the_nodes_of_the_host(host):
    history = host.run(make_stock_graph(RING))

    assert len(history.outputs["image"]["images"]) == 9
    assert host.notes["text"] == f"understood: {RING}"


def test_it_is_loaded_once(host):
    host.run(make_stock_graph(RING))
    again = host.run(make_stock_graph(RING.replace("red", "blue")))

    assert "miniature" in again.cached
    assert "text" in again.executed


def test_another_size_is_refused(host):
    graph = {
        "miniature": make_node("LongLiveMiniature"),
        "session": make_node("LongLiveSession", model=["miniature", 0], width=832, height=480, seed=0),
        "info": make_node("LongLiveSessionInfo", session=["session", 0]),
    }
    with pytest.raises(HostError, match="the miniature makes 64 x 64 pixels and nothing else, not 832 x 480"):
        host.run(graph)


def test_a_word_outside_the_grammar_is_named(host):
    told = "'fox' left out of the prompt 'a red fox moves left at night': the miniature knows red"
    host.run(make_stock_graph("a red fox moves left at night"))

    assert told in host.log
    assert host.notes["text"].startswith(told)
    assert "the miniature needs one shape: ring, square, triangle" in host.notes["text"]


def test_a_timeline_tells_of_every_segment(newest):
    script = f"1b | {RING}\n1b | a cow moves up by day\n"
    graph = {
        "miniature": make_node("LongLiveMiniature"),
        "session": make_node("LongLiveSession", model=["miniature", 0], width=64, height=64, seed=1),
        "timeline": make_node("LongLiveTimeline", session=["session", 0], clip=["miniature", 1], script=script),
        "end": make_node("TestProbe", value=["timeline", 0]),
    }
    newest.run(graph)
    understood, unknown, *_ = newest.notes["timeline"].splitlines()

    assert understood == f"understood: {RING}"
    assert unknown.startswith("'cow' left out of the prompt")


TIMELINES = {"LongLiveTimeline", "LongLiveLive"}  # nodes with a script


@each_workflow
def test_workflows_speak_its_language(workflow):
    graph = read_example(workflow)
    texts = [item["inputs"]["text"] for item in graph.values() if item["class_type"] == "CLIPTextEncode"]
    scripts = [item["inputs"]["script"] for item in graph.values() if item["class_type"] in TIMELINES]
    texts += [segment.prompt for script in scripts for segment in parse_timeline(script, block=3)]
    pairs = [item["inputs"]["pairs"] for item in graph.values() if item["class_type"] == "LongLivePromptPairs"]
    texts += [prompt for text in pairs for pair in parse_pairs(text) for prompt in (pair.first, pair.second)]

    assert texts
    assert [problem for text in texts for problem in find_problems(text)] == []


@each_workflow
def test_real_weights_wait_muted_in_a_group_of_their_own(workflow):
    drawn = json.loads(workflow.read_text())
    muted = {item["id"]: item for item in drawn["nodes"] if item["mode"] == MUTED}
    [group] = drawn["groups"]

    assert group["title"] == "Real weights"
    assert {item["type"] for item in muted.values()} == LOADERS
    assert all(within(item, group["bounding"]) == (item["id"] in muted) for item in drawn["nodes"] if not note(item))
    assert [link for link in drawn["links"] if {link[1], link[3]} & muted.keys()] == []


def within(item: dict, bounding: list[float]) -> bool:
    left, top, width, height = bounding
    return left <= item["pos"][0] < left + width and top <= item["pos"][1] < top + height


def note(item: dict) -> bool:
    return item["type"] == "MarkdownNote"
