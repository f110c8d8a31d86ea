"""Saved files are read and continued with the results of the time they were written (`tests/data/saved_files`)."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import tiny_tuning
import torch
from safetensors.torch import load_file

from longlive.model.vae_streams import StreamingDecoder
from longlive.rollout.sampler import Sampler
from longlive.session.block_store import Store
from longlive.session.boundary import Boundary
from longlive.session.session import Session
from longlive.session.session_file import load_session
from longlive.tuning.run import ADAPTER_FILE, METRICS_FILE, run_tuning
from longlive.video.fragments import Encoding
from longlive.video.render import VideoRenderer, render_video
from longlive.video.writer import VideoWriter
from longlive.weights.lora import Lora

TESTS = Path(__file__).parents[1]
SAVED = TESTS / "data" / "saved_files"
FACTS = json.loads((SAVED / "facts.json").read_text())
CONTINUED = load_file(SAVED / "continued.safetensors")["latents"]
NODES = json.loads((TESTS / "host" / "object_info.json").read_text())
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
ENDINGS = {"fixed", "randomize", "increment", "decrement"}  # what the interface does to a seed after a run


@pytest.fixture
def saved() -> Session:
    return load_session(SAVED / "session.safetensors")


@pytest.fixture
def passes() -> list:
    """The passes that samplers made."""
    return []


@pytest.fixture
def store(tmp_path) -> Store:
    """A copy of the store of blocks, which a test may change."""
    return Store(shutil.copytree(SAVED / "blocks", tmp_path / "blocks"))


def continue_session(session: Session, passes: list, store: Store | None = None) -> Session:
    blocks = len(FACTS["continued_keys"]) - len(FACTS["keys"])
    with Sampler(tiny.model(), store=store, watch=passes.append) as sampler:
        return sampler.sample(session, blocks)


def test_a_session_file_holds_what_was_saved(saved):
    frames = [0]
    for blocks, _ in FACTS["story"]:
        frames.append(frames[-1] + 3 * blocks)
    assert [switch.frame for switch in saved.switches] == frames[:-1]
    assert [switch.boundary.value for switch in saved.switches[1:]] == [word for _, word in FACTS["story"][1:]]
    assert {word for _, word in FACTS["story"][1:]} == {boundary.value for boundary in Boundary}
    assert [str(switch.prompt) for switch in saved.switches] == [f"prompt {n}" for n in range(len(saved.switches))]
    assert list(saved.keys) == FACTS["continued_keys"][: len(saved.keys)]


def test_a_session_file_is_continued_to_the_recorded_latents(saved, passes):
    longer = continue_session(saved, passes)
    assert passes
    assert list(longer.keys) == FACTS["continued_keys"]
    torch.testing.assert_close(longer.frames(saved.num_frames, CONTINUED.shape[1]), CONTINUED, atol=1e-5, rtol=1e-5)


def test_the_store_answers_the_continuation_without_a_pass(saved, passes, store):
    longer = continue_session(saved, passes, store)
    assert not passes
    assert torch.equal(longer.frames(saved.num_frames, CONTINUED.shape[1]), CONTINUED)


def test_the_store_answers_the_video_from_its_beginning_without_a_pass(saved, passes, store):
    session = tiny.session().switched_to(saved.switches[0].prompt)
    with Sampler(tiny.model(), store=store, watch=passes.append) as sampler:
        for (blocks, _), switch in zip(FACTS["story"], saved.switches, strict=True):
            if switch.frame:
                session = session.switched_to(switch.prompt, switch.boundary)
            session = sampler.sample(session, blocks)
    assert not passes
    assert list(session.keys) == FACTS["keys"]
    assert torch.equal(session.latents(), saved.latents())


def test_a_video_is_made_of_stored_fragments_and_nothing_is_decoded(saved, tmp_path, monkeypatch):
    assert Encoding().identity.partition(", libavcodec")[0] == FACTS["encoder"]
    monkeypatch.setattr(Encoding, "identity", "recorded")  # whatever the version of libavcodec
    fragments = Store(shutil.copytree(SAVED / "fragments", tmp_path / "fragments"))
    blocks = saved.blocks[: FACTS["filmed"]]
    with VideoWriter(tmp_path / "video.mp4") as writer:
        renderer = VideoRenderer(StreamingDecoder(tiny_tuning.load_tiny_vae()), writer, fragments)
        assert render_video(blocks, renderer) is not None
    assert renderer.num_decoded == 0
    assert writer.num_frames == 4 * 3 * len(blocks) - 3


def test_a_tuning_is_resumed_and_gives_the_recorded_figures(tmp_path):
    folder = shutil.copytree(SAVED / "tuning", tmp_path / "tuning")
    config, steps = tiny_tuning.with_learn(rank=1, alpha=1), []
    options = replace(config.run, steps=FACTS["curve"][-1]["step"], keep=1)
    trainer = tiny_tuning.make_trainer(replace(config, run=options))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run_tuning(trainer, folder, watch=lambda step, metrics: steps.append(step))
    finally:
        torch.set_num_threads(threads)
    assert steps == [4, 5, 6]
    lines = [json.loads(line) for line in (folder / METRICS_FILE).read_text().splitlines()]
    assert [line.keys() for line in lines] == [line.keys() for line in FACTS["curve"]]
    for line, expected in zip(lines, FACTS["curve"], strict=True):
        assert line | {"seconds": 0} == pytest.approx(expected | {"seconds": 0}, rel=1e-4)


def test_the_adapters_of_a_tuning_are_read():
    for file in (ADAPTER_FILE, "adapter.pt"):
        lora = Lora.read(SAVED / "tuning" / file)
        assert (len(lora.pairs), lora.ranks) == (10 * tiny.GEOMETRY.num_layers, (1,))


@pytest.mark.parametrize("path", sorted((SAVED / "workflows").glob("*.json")), ids=lambda path: path.stem)
def test_a_workflow_names_nodes_inputs_and_outputs_that_exist(path):
    """Values of widgets are saved by position, so their number and order count too; later inputs must be optional."""
    ours = [node for node in json.loads(path.read_text())["nodes"] if node["type"].startswith("LongLive")]
    assert ours
    for node in ours:
        known = NODES[node["type"]]
        saved = {entry["name"] for entry in node["inputs"]}
        inputs = {e["name"]: e for e in known["inputs"] if e["name"] in saved or e["kind"] == "required"}
        assert {entry["name"]: entry["type"] for entry in node["inputs"]} == {
            name: entry["type"] for name, entry in inputs.items()
        }
        assert [entry["type"] for entry in node["outputs"]] == known["outputs"][: len(node["outputs"])]
        values = [value for value in node["widgets_values"] if value not in ENDINGS]
        widgets = [entry for entry in inputs.values() if entry["type"] in WIDGETS]
        assert [*inputs.values()] == known["inputs"][: len(inputs)]
        assert [entry["name"] for entry in widgets] == [e["name"] for e in node["inputs"] if "widget" in e]
        assert len(values) == len(widgets)
        for value, widget in zip(values, widgets, strict=True):
            if widget["type"] == "COMBO" and widget.get("options"):
                assert value in widget["options"] or widget["name"].endswith("_name"), widget["name"]
            elif widget["type"] in ("INT", "FLOAT"):
                assert widget.get("min", value) <= value <= widget.get("max", value)
