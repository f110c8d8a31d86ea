"""Bad input meets one clear sentence: what was found, what was expected, the cure. Nothing stays behind."""

import contextlib
import pickle
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import graphs
import model_files
import pytest
import torch
from graphs import chain, node, save_latents
from host_messages import Graph, HostError
from host_process import ComfyUI
from safetensors.torch import save_file
from test_workflows import FOX, OWL, count_alive, count_stored, find_store, forget, read_latents


def read_refusal(host: ComfyUI, graph: Graph) -> str:
    """What a graph is refused with, one sentence; after it no memory is alive and no half file is left."""
    with pytest.raises(HostError) as refusal:
        host.run(graph)
    message, _, trace = str(refusal.value).partition("\n")
    assert re.search(r"longlive\.\w+: ", message), f"{message}\n{trace}"
    assert count_alive(host)["caches"] == 0
    assert [path for path in host.base.rglob("*.part")] == []
    return message.partition(": ")[2].partition(": ")[2]


def end_graph(graph: Graph, node_id: str) -> dict:
    """The graph with something behind node `node_id`, or the host would not run it."""
    return {**graph, "end": node("TestProbe", value=[node_id, 0])}


def change_inputs(graph: Graph, node_id: str, **inputs) -> dict:
    return {**graph, node_id: {**graph[node_id], "inputs": {**graph[node_id]["inputs"], **inputs}}}


SHORT = end_graph(chain((FOX, 1), seed=1), "chunk0")
BEGUN = {id: SHORT[id] for id in ("model", "clip", "text0", "session")}


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
        "narrow": node("TestConditioning", width=768, batch=1, rows=8),
        "batch": node("TestConditioning", batch=2, rows=8, width=4096),
        "two": node("ConditioningCombine", conditioning_1=["text0", 0], conditioning_2=["text0", 0]),
    }

    assert read_refusal(newest, change_inputs(SHORT | prompts, "session", **inputs)).startswith(told)


def test_a_video_without_a_prompt(newest):
    graph = dict(SHORT)
    graph["session"] = node("LongLiveSession", model=["model", 0], width=32, height=32, seed=1)

    assert read_refusal(newest, graph) == "the session has no prompt yet; give it one before its first frame is sampled"


@pytest.mark.parametrize("type", ["LongLiveDecode", "LongLiveSessionToLatent"])
def test_a_video_without_frames(newest, type):
    graph = BEGUN | {"vae": node("VAELoader", vae_name=model_files.VAE.name)}
    graph["out"] = node(type, session=["session", 0])
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
    graph = change_inputs(SHORT, "chunk0", session=value) | {"end": node("TestProbe", value=["chunk0", 0])}
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
    graph = BEGUN | {"timeline": node("LongLiveTimeline", session=["session", 0], clip=["clip", 0], script=script)}
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
    graph = BEGUN | {"timeline": node("LongLiveTimeline", session=["session", 0], clip=["clip", 0], script=script)}
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


NEEDS_WAN = "expected a Wan2.1 text-to-video network; load longlive_base with LongLive Model Loader"


@pytest.fixture(scope="module")
def strangers(newest: ComfyUI) -> None:
    """Files that are not what they claim, in the folders of the host."""
    wan = model_files.make_dit_weights()
    patch = "patch_embedding.weight"
    folder = newest.models / "diffusion_models"
    save_file(
        wan
        | {
            patch: torch.zeros(256, 36, 1, 2, 2),
            "img_emb.proj.0.weight": torch.ones(1280),
            "img_emb.proj.0.bias": torch.ones(1280),
        },
        folder / "i2v.safetensors",
    )
    save_file(
        wan
        | {
            patch: torch.zeros(256, 48, 1, 2, 2),
            "head.head.weight": torch.zeros(192, 256),
            "head.head.bias": torch.zeros(192),
        },
        folder / "5b.safetensors",
    )
    save_file(make_flux_weights(), folder / "flux.safetensors")
    save_file(
        {
            "model.diffusion_model.input_blocks.0.0.weight": torch.ones(4, 4),
            "model.diffusion_model.label_emb.0.0.weight": torch.ones(4, 4),
        },
        folder / "sdxl.safetensors",
    )
    whole = (newest.models / model_files.DIT).read_bytes()
    (folder / "truncated.safetensors").write_bytes(whole[: len(whole) // 2])
    (folder / "code.pt").write_bytes(pickle.dumps({"generator": Path("/")}, protocol=2))
    (folder / "page.pt").write_bytes(b"<!DOCTYPE html><html>")

    adapter = model_files.make_lora_weights()
    loras = newest.models / "loras"
    save_file({f"lora_unet_{key}": tensor for key, tensor in make_flux_adapter().items()}, loras / "flux.safetensors")
    deeper = {key.replace("blocks.", "blocks.9"): tensor for key, tensor in adapter.items()}
    save_file(deeper, loras / "nothing.safetensors")
    save_file(adapter | {key: tensor.clone() for key, tensor in deeper.items()}, loras / "partly.safetensors")
    save_file({key: torch.ones(4, 8) for key in adapter}, loras / "other_size.safetensors")

    for part, first in (("encoder", "0.weight"), ("decoder", "1.weight")):
        path = newest.models / "vae_approx" / f"taesd_{part}.safetensors"
        path.parent.mkdir(exist_ok=True)
        save_file({first: torch.zeros(64, 3 if part == "encoder" else 4, 3, 3)}, path)


def make_flux_weights() -> dict[str, torch.Tensor]:
    """As much of another network as ComfyUI needs to take it for one."""
    return {
        "double_blocks.0.img_attn.norm.key_norm.scale": torch.ones(128),
        "img_in.weight": torch.zeros(256, 64),
        "txt_in.weight": torch.zeros(256, 4096),
        "vector_in.in_layer.weight": torch.zeros(256, 768),
    }


def make_flux_adapter() -> dict[str, torch.Tensor]:
    module = "double_blocks_0_img_attn_proj"
    return {f"{module}.lora_down.weight": torch.ones(2, 8), f"{module}.lora_up.weight": torch.ones(8, 2)}


@pytest.mark.usefixtures("strangers")
@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("i2v", f"the MODEL is WAN21 (i2v), {NEEDS_WAN}"),
        ("5b", "the MODEL takes 48 latent channels and makes 48, Wan2.1 text-to-video has 16; load longlive_base with"),
        ("flux", f"the MODEL is Flux (no Wan), {NEEDS_WAN}"),
    ],
)
def test_a_model_of_another_kind_from_the_stock_loader(newest, file, told):
    other = node("UNETLoader", unet_name=f"{file}.safetensors", weight_dtype="default")
    assert read_refusal(newest, SHORT | {"model": other}).startswith(told)


@pytest.mark.usefixtures("strangers")
@pytest.mark.parametrize(
    ("file", "told"),
    [
        (
            "i2v.safetensors",
            "i2v.safetensors holds Wan image-to-video weights; expected LongLive or Wan2.1 text-to-video",
        ),
        ("5b.safetensors", "5b.safetensors holds Wan2.2 5B weights (48 latent channels, as LongLive 2.0); expected"),
        ("flux.safetensors", "flux.safetensors holds"),
        ("sdxl.safetensors", "sdxl.safetensors holds an SDXL checkpoint; expected LongLive or Wan2.1"),
        ("truncated.safetensors", "truncated.safetensors is truncated or damaged"),
        ("code.pt", "code.pt is a pickle of more than tensors"),
        ("page.pt", "page.pt is a web page instead of the weights; download the file itself"),
    ],
)
def test_a_file_that_is_not_what_it_claims(newest, file, told):
    loader = node("LongLiveModelLoader", model_name=file, lora_name="none", lora_strength=1.0, weight_dtype="default")

    assert read_refusal(newest, SHORT | {"model": loader}).startswith(told)


@pytest.mark.usefixtures("strangers")
@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("flux", "flux.safetensors holds a LoRA for Flux; expected a LoRA for LongLive or Wan2.1"),
        ("nothing", "nothing.safetensors matches no module of the model (it has blocks.9"),
        ("other_size", "other_size.safetensors"),
    ],
)
def test_a_lora_for_another_model(newest, file, told):
    assert read_refusal(newest, SHORT | {"model": load_with_lora(f"{file}.safetensors")}).startswith(told)


@pytest.mark.usefixtures("strangers")
def test_a_lora_that_matches_in_part_is_reported(newest):
    graph = {"model": load_with_lora("partly.safetensors"), "report": node("PreviewAny", source=["model", 1])}

    assert "partly.safetensors is used in part: 20 modules, without 20 modules that the model lacks" in newest.run(
        graph
    ).text("report")


def load_with_lora(lora: str) -> dict:
    return node(
        "LongLiveModelLoader",
        model_name=model_files.DIT.name,
        lora_name=lora,
        lora_strength=1.0,
        weight_dtype="default",
    )


def decode_with(vae: str, prefix: str = "refused") -> dict:
    graph = chain((FOX, 1), seed=1) | {"vae": node("VAELoader", vae_name=vae)}
    return graph | {"out": node("LongLiveDecode", session=["chunk0", 0], vae=["vae", 0], filename_prefix=prefix)}


@pytest.mark.usefixtures("strangers")
def test_a_vae_of_images(newest):
    told = read_refusal(newest, decode_with("taesd"))

    assert told.startswith(
        "this VAE is not Wan2.1's: found a TAESD of 4 latent channels, expected 16 of a video; connect"
    )


def save_as(name: str) -> dict:
    return chain((FOX, 1), seed=1) | {"save": node("LongLiveSaveSession", session=["chunk0", 0], name=name)}


def load_from(name: str) -> dict:
    return end_graph(
        {"model": SHORT["model"], "load": node("LongLiveLoadSession", model=["model", 0], name=name)}, "load"
    )


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


def test_a_folder_that_is_a_file(newest):
    (newest.output / "longlive").mkdir(exist_ok=True)
    (newest.output / "longlive" / "blocked").touch()

    told = read_refusal(newest, save_as("blocked/film"))
    assert told.startswith("the session cannot be written to")
    assert told.endswith("free some space or choose another folder")


@contextlib.contextmanager
def mount_disk(folder: Path, options: str) -> Iterator[None]:
    """A small disk of its own at `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.parametrize("options", ["size=8k", "ro"])
def test_a_disk_that_refuses_a_session(newest, options):
    with mount_disk(newest.output / "longlive" / "disk", options):
        told = read_refusal(newest, save_as("disk/film"))

    assert told.startswith("the session cannot be written to")
    assert told.endswith("free some space or choose another folder")


@pytest.mark.parametrize("options", ["size=4k", "ro"])
def test_a_disk_that_refuses_a_video(newest, options):
    with mount_disk(newest.output / "disk", options):
        told = read_refusal(newest, decode_with(model_files.VAE.name, f"disk/{options}"))

    assert "cannot be written after" in told
    assert told.endswith("free some space or choose a folder you may write to")


@pytest.mark.parametrize("options", ["size=4k", "ro"])
def test_a_disk_that_refuses_blocks_costs_no_video(newest, options):
    forget(newest)
    with mount_disk(find_store(newest), options):
        newest.run(chain((FOX, 2), seed=2, name="kept"))
        assert count_alive(newest)["caches"] == 0

    assert "finished work cannot be stored in" in newest.log
    assert read_latents(newest, "kept").shape[2] == 6


def test_after_all_that_the_host_makes_videos(newest):
    newest.run(save_latents(chain((FOX, 1), (OWL, 1), seed=4), "chunk1", "after_all"))

    direct = graphs.compute_expected(chain((FOX, 1), (OWL, 1), seed=4), "chunk1", newest.models)
    assert read_latents(newest, "after_all").shape[2] == direct.num_frames
    assert count_alive(newest)["caches"] == 0
