"""The models that a session is made and continued with: our loader, LoRAs, saved sessions (law 3)."""

import graphs
import model_files
import pytest
import torch
from graphs import FOX, OWL, TOLERANCE, chain, chunk, make_node, save_latents, to_vae_space
from host_messages import Graph, HostError
from host_process import ComfyUI
from host_state import forget, read_latents, remake
from safetensors.torch import save_file

from longlive.weights.lora import Lora


def use_our_loader(graph: Graph, **inputs) -> dict:
    loader = {
        "model_name": model_files.ORIGINAL_DIT.name,
        "lora_name": "none",
        "lora_strength": 1.0,
        "weight_dtype": "default",
    }
    return {**graph, "model": make_node("LongLiveModelLoader", **loader | inputs)}


def add_stock_lora(host: ComfyUI, graph: Graph) -> dict:
    name = "comfy_named_lora.safetensors"
    save_file(Lora.read(host.models / model_files.LORA).as_comfy_state(), host.models / "loras" / name)
    loader = make_node("LoraLoaderModelOnly", model=["base", 0], lora_name=name, strength_model=0.75)
    return {**graph, "base": graph["model"], "model": loader}


def test_our_loader_gives_the_model_of_the_stock_loader(host):
    graph = chain((FOX, 2), (OWL, 1), seed=13, name="loaded")

    assert torch.equal(remake(host, graph, "loaded"), remake(host, use_our_loader(graph), "loaded"))


def test_lora_is_merged_as_longlive_merges_it(host):
    plain = chain((FOX, 2), (OWL, 1), seed=13, name="adapted")
    ours = use_our_loader(plain, lora_name=model_files.ORIGINAL_LORA.name, lora_strength=0.75)
    merged, patched = (remake(host, graph, "adapted") for graph in (ours, add_stock_lora(host, plain)))

    assert (merged - remake(host, plain, "adapted")).abs().max() > 1000 * TOLERANCE
    direct = to_vae_space(graphs.compute_expected(ours, "chunk1", host.models))
    torch.testing.assert_close(merged, direct, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(merged, patched, rtol=0, atol=TOLERANCE)


def load_saved(name: str, graph: Graph) -> dict:
    return {"model": graph["model"], "load": make_node("LongLiveLoadSession", model=["model", 0], name=name)}


def test_law_3_a_session_is_continued_as_if_never_saved(host):
    video = chain((FOX, 5), seed=14) | {"save": make_node("LongLiveSaveSession", session=["chunk0", 0], name="five")}
    more = save_latents(use_our_loader(load_saved("five", video)) | {"more": chunk("load", 2)}, "more", "continued")
    forget(host)
    host.run(video)
    continued = remake(host, more, "continued")

    assert torch.equal(continued, remake(host, chain((FOX, 7), seed=14, name="seven"), "seven"))


def test_a_model_keeps_its_identity_while_a_lora_patches_its_weights(host):
    video = chain((FOX, 1), seed=17) | {"save": make_node("LongLiveSaveSession", session=["chunk0", 0], name="known")}
    forget(host)
    host.run(add_stock_lora(host, sample_in_host()))  # the network stays in memory, its weights patched
    host.run(video)
    host.free()

    host.run(save_latents(load_saved("known", video), "load", "known"))
    assert read_latents(host, "known").shape[2] == 3


def sample_in_host() -> dict:
    graph = chain((FOX, 1), seed=17)
    wires = {"model": ["model", 0], "positive": ["text0", 0], "negative": ["text0", 0], "latent_image": ["empty", 0]}
    settings = {"steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    return {
        **{id: graph[id] for id in ("model", "clip", "text0")},
        "empty": make_node("EmptyHunyuanLatentVideo", width=32, height=32, length=9, batch_size=1),
        "sample": make_node("KSampler", seed=1, **settings, **wires),
        "end": make_node("TestProbe", value=["sample", 0]),
    }


def test_a_session_saved_again_is_read_again(host):
    for blocks in (1, 2):
        video = chain((FOX, blocks), seed=16) | {
            "save": make_node("LongLiveSaveSession", session=["chunk0", 0], name="anew")
        }
        host.run(video)
        host.run(save_latents(load_saved("anew", video), "load", "read"))
        assert read_latents(host, "read").shape[2] == 3 * blocks


def test_a_session_is_not_continued_with_another_model(host):
    graph = chain((FOX, 1), seed=15) | {"save": make_node("LongLiveSaveSession", session=["chunk0", 0], name="plain")}
    adapted = add_stock_lora(host, graph)
    adapted["save"] = make_node("LongLiveSaveSession", session=["chunk0", 0], name="adapted")
    host.run(graph)
    host.run(adapted)

    for name, model in (("plain", adapted), ("adapted", graph)):
        other = {**model, **load_saved(name, model)}
        other = {id: other[id] for id in ("base", "model", "load") if id in other}
        with pytest.raises(HostError, match=f"session {name} was made with other weights"):
            host.run(save_latents(other, "load", "refused"))
