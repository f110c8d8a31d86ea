"""A tuning in the real ComfyUI: it stops and resumes, its LoRA loads in stock nodes, it frees its memory."""

import json

import graphs
import model_files
import pytest
import torch
from graphs import WORKFLOWS, make_node, read_example, save_latents
from host_messages import HostError, Interrupted
from host_process import ComfyUI
from host_state import read_refusal
from hosts import NEWEST
from inside import call_inside
from safetensors.torch import load_file, save_file

STEPS = 3
WORKFLOW = WORKFLOWS[5]
SHORTER = {"steps": STEPS, "batch": 1, "length": 39}
TUNER, PAIRS, MINIATURE = "4", "3", "2"


def make_tuning(name: str, **inputs) -> dict:
    """Make the graph of the example's tuner with a few steps."""
    graph = {id: item for id, item in read_example(WORKFLOW).items() if id in {MINIATURE, PAIRS, TUNER}}
    values = graph[TUNER]["inputs"] | SHORTER | inputs | {"name": name}
    return graph | {TUNER: graph[TUNER] | {"inputs": values}}


def stop_at(host: ComfyUI, graph: dict, step: int) -> None:
    """Interrupt a tuning when its progress reaches a step."""
    prompt_id = host.queue(graph)

    def is_there(event) -> bool:
        ours = event.data.get("prompt_id") == prompt_id and event.data.get("node") == TUNER
        return ours and event.type == "progress" and event.data["value"] >= step

    host.wait_for(is_there)
    host.interrupt()
    with pytest.raises(Interrupted, match="LongLiveTuner"):
        host.wait(prompt_id)


def list_steps(host: ComfyUI, name: str) -> list[int]:
    folder = host.output / "longlive" / "tuning" / name / "checkpoints"
    return sorted(int(path.name) for path in folder.iterdir())


def count_tuning_parts(host: ComfyUI) -> int:
    return json.loads(host.run({"probe": make_node("TestProbe")}).text("probe"))["of_tunings"]


def make_video(model: list, name: str) -> dict:
    """Make the graph of two blocks with a model."""
    session = {"model": model, "width": 64, "height": 64, "seed": 1, "conditioning": ["text", 0]}
    graph = {
        MINIATURE: make_node("LongLiveMiniature"),
        "text": make_node("CLIPTextEncode", clip=[MINIATURE, 1], text="a red ring moves left at night"),
        "session": make_node("LongLiveSession", **session),
        "chunk": graphs.chunk("session", 2),
    }
    return save_latents(graph, "chunk", name)


def make_adapted_video(loader: str, name: str, **inputs) -> dict:
    """Make the same graph with an adapter on the model."""
    lora = make_node(loader, model=[MINIATURE, 0], strength_model=1.0, **inputs)
    return make_video(["lora", 0], name) | {"lora": lora}


@pytest.fixture(scope="module")
def resumed(newest: ComfyUI) -> dict[str, int]:
    """Interrupt a tuning, resume it to its end and make a video with it; count what is alive after each."""
    stop_at(newest, make_tuning("resumed"), 1)
    assert max(list_steps(newest, "resumed")) < STEPS
    interrupted = count_tuning_parts(newest)
    history = newest.run(
        make_tuning("resumed") | make_adapted_video("LoraModelLoader", "by_wire", lora=[TUNER, 1], bypass=False)
    )
    assert [file["filename"] for file in history.outputs[TUNER]["images"]] == [f"sample-{STEPS:06d}.mp4"]
    assert any(event.type == "preview" and event.data["node_id"] == TUNER for event in history.events)
    return {"interrupted": interrupted, "ended": count_tuning_parts(newest)}


def test_nothing_of_a_tuning_stays_in_memory(resumed):
    assert resumed == {"interrupted": 0, "ended": 0}


def test_a_tuning_that_was_interrupted_gives_the_same_adapter(newest, resumed):
    stop_at(newest, make_tuning("whole"), STEPS)  # in its sample, which comes after the last step
    whole = load_file(newest.output / "longlive" / "tuning" / "whole" / "adapter.safetensors")
    stopped = load_file(newest.models / "loras" / "resumed.safetensors")

    assert list_steps(newest, "whole") == [STEPS]
    assert whole.keys() == stopped.keys()
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)  # the order of names in a header varies
    assert not list(newest.base.rglob("*.part"))


def test_the_loaders_of_the_host_take_the_adapter(newest, resumed):
    newest.run(make_video([MINIATURE, 0], "plain"))
    newest.run(make_adapted_video("LoraLoaderModelOnly", "by_name", lora_name="resumed.safetensors"))
    plain, by_name, by_wire = (
        load_file(newest.output / f"{name}.safetensors")["samples"] for name in ("plain", "by_name", "by_wire")
    )

    assert "lora key not loaded" not in newest.log
    assert not torch.equal(plain, by_name)
    assert torch.equal(by_name, by_wire)


def test_what_is_tuned_is_what_the_host_loaded():
    told = call_inside(NEWEST, "tuner", "check_copies", "check_accelerator", "check_codec")

    assert told == [None, None, None]


def test_a_tuning_is_not_continued_with_other_settings(newest, resumed):
    told = read_refusal(newest, make_tuning("resumed", rate=2e-4))

    assert (
        "was made with another configuration: learn.rate was 0.0001 and is 0.0002; restore the old values, or" in told
    )


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        (
            {"teacher": ["quantised", 0]},
            "the teacher is quantised (its weights are float8_e4m3fn), expected whole weights",
        ),
        ({"teacher": ["wide", 0]}, "the teacher takes 48 latent channels and makes 48, Wan2.1 text-to-video has 16; "),
        ({"name": "../x"}, "'../x' is not a name for a LoRA in "),
        (
            {"name": "longlive_tiny_lora"},
            "longlive_tiny_lora.safetensors is a LoRA that was not made by LongLive Tuner",
        ),
        ({"width": 128}, "the miniature makes 64 x 64 pixels and nothing else, not 128 x 64; set width and height to"),
        ({"rank": 512}, "rank is 512, but the narrowest Linear of this network is 256 wide; use at most 256"),
    ],
    ids=str,
)
def test_a_tuning_that_cannot_begin(newest, inputs, told):
    wide = model_files.make_dit_weights() | {
        "patch_embedding.weight": torch.zeros(256, 48, 1, 2, 2),
        "head.head.weight": torch.zeros(192, 256),
        "head.head.bias": torch.zeros(192),
    }
    save_file(wide, newest.models / "diffusion_models" / "wide.safetensors")
    graph = make_tuning(**{"name": "refused"} | inputs) | {
        "quantised": make_node("UNETLoader", unet_name=model_files.DIT.name, weight_dtype="fp8_e4m3fn"),
        "wide": make_node("UNETLoader", unet_name="wide.safetensors", weight_dtype="default"),
    }

    assert told in read_refusal(newest, graph)
    assert count_tuning_parts(newest) == 0


@pytest.mark.parametrize(
    ("pairs", "told"),
    [
        ("# nothing\n\n", "the text has no prompts; write for example: "),
        ("a red ring ->", "line 1 has an empty prompt; write a prompt there or remove the line"),
    ],
)
def test_texts_without_pairs_are_refused(newest, pairs, told):
    graph = make_tuning("none")
    graph[PAIRS] = graph[PAIRS] | {"inputs": graph[PAIRS]["inputs"] | {"pairs": pairs}}

    with pytest.raises(HostError) as refusal:
        newest.run(graph)
    assert told in str(refusal.value)


def test_pairs_of_a_file_are_read_again_when_it_changes(newest):
    path = newest.base / "input" / "pairs.txt"
    graph = {MINIATURE: make_tuning("x")[MINIATURE]}
    inputs = {"clip": [MINIATURE, 1], "pairs": "", "file": path.name, "negative": ""}
    graph |= {PAIRS: make_node("LongLivePromptPairs", **inputs), "end": make_node("TestProbe", value=[PAIRS, 0])}
    seen = []
    for text in ("a red ring moves left at night -> a red ring moves up at night\n", "a blue ring moves up by day\n"):
        path.write_text(text)
        seen.append(newest.run(graph).text(PAIRS))

    assert seen == [
        "1 pair of pairs.txt; the text above is not used\n"
        "a red ring moves left at night -> a red ring moves up at night",
        "1 pair of pairs.txt; the text above is not used\na blue ring moves up by day",
    ]
