"""Every supported ComfyUI loads the pack, and its stock nodes work with the tiny models of the tests."""

import json

import model_files
import pytest
from graphs import make_node
from host_messages import HostError, Interrupted
from host_process import PACK, ComfyUI
from hosts import REPOSITORY
from node_table import TABLE, list_promises

WEB = REPOSITORY / "web"


def test_pack_is_imported_without_error(host):
    assert f"/custom_nodes/{PACK}" in host.log
    assert [line for line in host.log.splitlines() if "IMPORT FAILED" in line or "Cannot import" in line] == []


def test_node_ids_and_inputs_are_kept(host):
    assert list_promises(host.object_info()) == json.loads(TABLE.read_text())


def test_web_files_are_served(host):
    for file in (file for file in WEB.rglob("*") if file.suffix in {".js", ".css", ".md"}):
        assert host.get(f"/extensions/{PACK}/{file.relative_to(WEB).as_posix()}") == file.read_bytes(), file


def make_stock_graph(host: ComfyUI, text: str) -> dict:
    """Make a graph of stock nodes only."""
    latent = {"width": 32, "height": 32, "length": 9, "batch_size": 1}
    sampler = {"seed": 1, "steps": 2, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    wires = {"model": ["model", 0], "positive": ["text", 0], "negative": ["text", 0], "latent_image": ["empty", 0]}
    return {
        "model": make_node("UNETLoader", unet_name=model_files.DIT.name, weight_dtype="default"),
        "vae": make_node("VAELoader", vae_name=model_files.VAE.name),
        "clip": make_node("TestHashedCLIP"),
        "text": make_node("CLIPTextEncode", clip=["clip", 0], text=text),
        "empty": make_node("EmptyHunyuanLatentVideo", **latent),
        "sample": make_node("KSampler", **sampler, **wires),
        "latent": make_node("TestSaveLatent", latent=["sample", 0], name="stock"),
        "decode": make_node("VAEDecode", samples=["latent", 0], vae=["vae", 0]),
        "image": make_node("SaveImage", images=["decode", 0], filename_prefix="stock"),
    }


def test_tiny_models_run_in_stock_nodes(host):
    history = host.run(make_stock_graph(host, "a lake at dawn"))

    assert len(history.outputs["image"]["images"]) == 9
    assert history.text("latent") == "(1, 16, 3, 4, 4) torch.float32"
    assert len(history.previews) == 2
    assert all(image.startswith(b"\xff\xd8") for image in history.previews)


def test_history_tells_what_ran_and_what_was_cached(host):
    host.run(make_stock_graph(host, "a lake at noon"))
    again = host.run(make_stock_graph(host, "a lake at night"))

    assert again.executed == ("text", "sample", "latent", "decode", "image")
    assert set(again.cached) == {"model", "vae", "clip", "empty"}


def test_failure_carries_the_text_of_the_host(host):
    graph = {"clip": make_node("TestHashedCLIP"), "fail": make_node("TestFail", value=["clip", 0], fail=True)}
    graph["probe"] = make_node("TestProbe", value=["fail", 0])

    with pytest.raises(HostError, match="TestFail was told to fail"):
        host.run(graph)


def test_refused_prompt_carries_the_text_of_the_host(host):
    with pytest.raises(HostError, match="UNETLoader"):
        host.run(
            {"model": make_node("UNETLoader", unet_name="absent"), "probe": make_node("TestProbe", value=["model", 0])}
        )


def test_interrupt_ends_a_prompt(newest):
    graph = make_stock_graph(newest, "a lake for ever")
    graph["sample"]["inputs"]["steps"] = 10_000
    prompt_id = newest.queue(graph)
    newest.wait_for(lambda event: event.data.get("prompt_id") == prompt_id and event.type == "preview")
    newest.interrupt()

    with pytest.raises(Interrupted, match="KSampler"):
        newest.wait(prompt_id)


def test_probe_counts_what_is_alive(host):
    history = host.run({"probe": make_node("TestProbe", name="idle")})

    assert json.loads(history.text("probe"))["caches"] == 0
    assert json.loads((host.output / "idle.json").read_text())["gpu_tensors"] == 0


def test_every_node_explains_itself(newest):
    for node_id, info in newest.object_info().items():
        if not node_id.startswith("LongLive"):
            continue
        inputs = {name: spec for kind in info["input"].values() if kind for name, spec in kind.items()}
        silent = [name for name, spec in inputs.items() if name in list_inputs(info) and not spec[1].get("tooltip")]
        assert silent == [], node_id
        assert all(info["output_tooltips"]), node_id
        assert info["description"], node_id
        assert info["search_aliases"], node_id
        assert (WEB / "docs" / f"{node_id}.md").is_file(), node_id


def list_inputs(info: dict) -> list[str]:
    """List the inputs of a node except the hidden ones."""
    return [*info["input"].get("required", {}), *info["input"].get("optional", {})]
