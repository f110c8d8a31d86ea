"""Models, LoRAs and VAEs of another kind, and damaged files, are refused with one sentence."""

import pickle
from pathlib import Path

import model_files
import pytest
import torch
from graphs import make_node
from host_process import ComfyUI
from host_state import read_refusal
from safetensors.torch import save_file
from short_graphs import SHORT, decode_with

NEEDS_WAN = "expected a Wan2.1 text-to-video network; load longlive_base with LongLive Model Loader"


@pytest.fixture(scope="module")
def strangers(newest: ComfyUI) -> None:
    """Files of wrong content in the model folders of the host."""
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
    """Make the few tensors by which ComfyUI recognises Flux."""
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
        ("flux", f"the MODEL is Flux (not Wan), {NEEDS_WAN}"),
    ],
)
def test_a_model_of_another_kind_from_the_stock_loader(newest, file, told):
    other = make_node("UNETLoader", unet_name=f"{file}.safetensors", weight_dtype="default")
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
    loader = make_node(
        "LongLiveModelLoader", model_name=file, lora_name="none", lora_strength=1.0, weight_dtype="default"
    )

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
    graph = {"model": load_with_lora("partly.safetensors"), "report": make_node("PreviewAny", source=["model", 1])}

    assert "partly.safetensors is used in part: 20 modules, without 20 modules that the model lacks" in newest.run(
        graph
    ).text("report")


def load_with_lora(lora: str) -> dict:
    return make_node(
        "LongLiveModelLoader",
        model_name=model_files.DIT.name,
        lora_name=lora,
        lora_strength=1.0,
        weight_dtype="default",
    )


@pytest.mark.usefixtures("strangers")
def test_a_vae_of_images(newest):
    told = read_refusal(newest, decode_with("taesd"))

    assert told.startswith(
        "this VAE is not Wan2.1's: found a TAESD of 4 latent channels, expected 16 of a video; connect"
    )
