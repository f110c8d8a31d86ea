"""Wrong input is refused with one sentence: what was found, what was expected, the cure. Nothing is left over."""

import model_files
import pytest
import torch
from graphs import FOX, chain, make_node
from host_messages import HostError
from host_state import count_stored, read_refusal
from safetensors.torch import save_file
from short_graphs import SESSION, SHORT, change_inputs, decode_with, end_graph, load_from, save_as


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        ({"width": 100}, "width is 100; it must be a positive multiple of 16, for example 96 or 112"),
        ({"height": 40}, "height is 40; it must be a positive multiple of 16, for example 32 or 48"),
        (
            {"conditioning": ["narrow", 0]},
            "the CONDITIONING is 768 wide, this model reads 4096; encode the prompt with",
        ),
        ({"conditioning": ["two", 0]}, "the CONDITIONING holds 2 prompts, a segment has one; connect one"),
        ({"conditioning": ["batch", 0]}, "the prompt embedding has shape [2, 8, 4096]; a session takes one prompt"),
    ],
    ids=str,
)
def test_a_session_that_cannot_begin(newest, inputs, told):
    prompts = {
        "narrow": make_node("TestConditioning", width=768, batch=1, rows=8),
        "batch": make_node("TestConditioning", batch=2, rows=8, width=4096),
        "two": make_node("ConditioningCombine", conditioning_1=["text0", 0], conditioning_2=["text0", 0]),
    }

    assert read_refusal(newest, change_inputs(SHORT | prompts, "session", **inputs)).startswith(told)


def test_a_video_without_a_prompt(newest):
    graph = dict(SHORT)
    graph["session"] = make_node("LongLiveSession", model=["model", 0], width=32, height=32, seed=1)

    assert read_refusal(newest, graph) == "the session has no prompt yet; give it one before its first frame is sampled"


@pytest.mark.parametrize("type", ["LongLiveDecode", "LongLiveSessionToLatent"])
def test_a_video_without_frames(newest, type):
    graph = SESSION | {"vae": make_node("VAELoader", vae_name=model_files.VAE.name)}
    graph["out"] = make_node(type, session=["session", 0])
    if type == "LongLiveDecode":
        graph["out"]["inputs"] |= {"vae": ["vae", 0], "filename_prefix": "none"}

    assert read_refusal(newest, end_graph(graph, "out")).startswith(
        "the session has no frames yet; connect a LongLive Chunk"
    )


@pytest.mark.parametrize(
    ("length", "unit", "told"),
    [
        (float("nan"), "seconds", "the duration is nan s; use more than 0 seconds"),
        (2.5, "blocks", "a length of 2.5 blocks does not fit: blocks are whole; use 2"),
        (float("nan"), "blocks", "a length of nan blocks does not fit: blocks are whole; use 1"),
        (7, "frames", "a length of 7 frames does not fit: a block has 3 frames; use 6"),
        (
            342,
            "blocks",
            "the video would reach frame 1026 since its start or last cut, but absolute positions end at frame",
        ),
    ],
)
def test_a_senseless_length(newest, length, unit, told):
    assert read_refusal(newest, change_inputs(SHORT, "chunk0", length=length, unit=unit)).startswith(told)


@pytest.mark.parametrize("value", [5, True, "chunk0", {}, ["chunk0"], None], ids=repr)
def test_a_value_written_where_an_output_belongs(newest, value):
    graph = change_inputs(SHORT, "chunk0", session=value) | {"end": make_node("TestProbe", value=["chunk0", 0])}
    with pytest.raises(HostError) as refusal:
        newest.run(graph)
    assert "AttributeError" not in str(refusal.value)
    if not isinstance(value, list):  # which the host takes for a link
        told = f"longlive.ConfigError: session is {value!r}, a plain value; connect the output of a node to it"
        assert told in str(refusal.value)


@pytest.mark.parametrize("length", [-1, 0, 1e9])
def test_a_length_the_host_itself_refuses(newest, length):
    with pytest.raises(HostError, match="length"):
        newest.run(change_inputs(SHORT, "chunk0", length=length))


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("", "line 1, column 1: the script is empty; write for example: 8s | a paper boat in the rain"),
        (
            "1b | a boat\n8 | a ship",
            "line 2, column 2: the duration has no unit; write 8s (seconds), 8b (blocks) or 8f",
        ),
        ("1b | a boat\n2s cutt | a ship", "line 2, column 4: unknown boundary 'cutt'; did you mean cut?"),
        ("1b | a boat\n# so\n2s a ship", "line 3, column 3: a bar is missing between duration and prompt"),
        ("1b | a boat\n2s |", "line 2, column 5: the prompt is empty; write it after the |"),
        ("0s | a boat", "line 1, column 1: the duration is 0 s; use more than 0 seconds"),
        ("-2s | a boat", "line 1, column 1: the duration is -2 s; use more than 0 seconds"),
        (
            "99999999s | a boat",
            "line 1, column 1: the duration is 99999999s; one segment may last 86400 s (a day) at most",
        ),
    ],
    ids=repr,
)
def test_a_timeline_that_does_not_parse_is_refused_before_anything_runs(newest, script, told):
    graph = SESSION | {
        "timeline": make_node("LongLiveTimeline", session=["session", 0], clip=["clip", 0], script=script)
    }
    with pytest.raises(HostError) as refusal:
        newest.run(end_graph(graph, "timeline"))
    assert told in str(refusal.value)


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("7f | a boat", "line 1, column 1: a segment of 7f does not fill blocks of 3 frames; use 6f or 9f"),
        ("200b | a boat\n142b keep | a ship", "the video would reach frame 1026 since its start or last cut, but"),
    ],
    ids=repr,
)
def test_a_timeline_that_cannot_be_made(newest, script, told):
    graph = SESSION | {
        "timeline": make_node("LongLiveTimeline", session=["session", 0], clip=["clip", 0], script=script)
    }
    before = count_stored(newest)

    assert read_refusal(newest, end_graph(graph, "timeline")).startswith(told)
    assert count_stored(newest) == before


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"window": 4}, "window 4 does not hold sink 3 and block 3; use a window of at least 6"),
        (
            {"sink": 512},
            "window 12 does not hold sink 512 and block 3; use a window of at least 515",
        ),
        ({"steps": ""}, "steps is empty; give at least one, for example 1000, 750, 500, 250"),
        ({"steps": "many"}, "steps are 'many'; give whole numbers such as 1000, 750, 500, 250"),
        ({"steps": "500, 750"}, "steps are [500, 750]; they must fall from at most 1000 to at least 1"),
        ({"steps": "1001"}, "steps are [1001]; they must fall from at most 1000 to at least 1"),
        ({"shift": float("nan")}, "shift is nan; it must be a finite number"),
    ],
    ids=str,
)
def test_senseless_options(newest, options, told):
    assert read_refusal(newest, end_graph(chain((FOX, 1), seed=1, options=options), "chunk0")) == told


@pytest.mark.parametrize("graph", [save_as, load_from], ids=["save", "load"])
@pytest.mark.parametrize("name", ["../x", "/tmp/x", "", "  ", ".hidden", "a/../../x", "nul\0"])
def test_a_name_that_leaves_its_folder(newest, graph, name):
    told = read_refusal(newest, graph(name))

    assert told.startswith(f"{name!r} is not a name for a session")
    assert told.endswith("use a plain name such as my_film")
    assert not (newest.output / "x.safetensors").exists()


def test_a_session_that_is_not_there(newest):
    assert read_refusal(newest, load_from("absent")).endswith("absent.safetensors; save one first, or check the name")


def test_a_damaged_session(newest):
    newest.run(save_as("whole"))
    folder = newest.output / "longlive"
    content = (folder / "whole.safetensors").read_bytes()
    (folder / "half.safetensors").write_bytes(content[: len(content) // 2])
    (folder / "noise.safetensors").write_bytes(b"noise" * 100)
    save_file({"latents": torch.zeros(1)}, folder / "other.safetensors")

    for name in ("half", "noise"):
        assert "is not a whole session file" in read_refusal(newest, load_from(name))
    assert read_refusal(newest, load_from("other")).endswith("but not a LongLive session; choose a saved session")


def test_a_prefix_that_leaves_the_output_folder(newest):
    with pytest.raises(HostError, match="is not a name for a video"):
        newest.run(decode_with(model_files.VAE.name, "../x"))
