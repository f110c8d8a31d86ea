"""Checks that a tuning in ComfyUI starts from the right weights and leaves all else as it was; run inside a host."""

import tempfile
from pathlib import Path

import comfy.model_management
import comfy.sd
import comfy.utils
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from comfyui_longlive.longlive.miniature import files
from comfyui_longlive.longlive.tuning.config import LearnConfig, ModelConfig, TuneConfig
from comfyui_longlive.longlive.tuning.streaming import Codec
from comfyui_longlive.longlive.weights.load import load_model
from comfyui_longlive.longlive.weights.lora import Lora
from comfyui_longlive.nodes.host.model import copy_network
from comfyui_longlive.nodes.host.tuning_codec import create_codec
from comfyui_longlive.nodes.host.tuning_job import STUDENT_WORDS, open_accelerator
from safetensors.torch import save_file

TOLERANCE = 1e-4


def make_adapter() -> dict[str, torch.Tensor]:
    """Make an adapter for each Linear of the layers, under ComfyUI's names."""
    generator, halves = torch.Generator().manual_seed(0), {}
    for name, weight in load_model(files.DIT, dtype=torch.float32)[0].state_dict().items():
        if name.startswith("blocks.") and name.endswith(".weight") and weight.ndim == 2:
            rows, columns = weight.shape
            key = "diffusion_model." + name.removesuffix(".weight")
            halves[f"{key}.lora_A.weight"] = torch.randn(4, columns, generator=generator) / columns
            halves[f"{key}.lora_B.weight"] = torch.randn(rows, 4, generator=generator)
    return halves


def read_lora(halves: dict[str, torch.Tensor]) -> Lora:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lora.safetensors"
        save_file(halves, path)
        return Lora.read(path)


def check_copies() -> None:
    """Raise unless a copy holds the file's weights with the LoRA merged, can be trained, and shares no memory."""
    halves = make_adapter()
    with torch.inference_mode():
        plain = comfy.sd.load_diffusion_model(str(files.DIT))
        worn, _ = comfy.sd.load_lora_for_models(plain, None, halves, 0.5, 0)
        comfy.model_management.load_models_gpu([worn])  # the patches lie on the very weights that `plain` shares
        with torch.inference_mode(False):
            copies = [copy_network(patcher, torch.float32, *STUDENT_WORDS) for patcher in (plain, worn)]
    expected, _ = load_model(files.DIT, dtype=torch.float32)
    assert_equal(copies[0].state_dict(), expected.state_dict(), tolerance=0)
    assert not any(weight.is_inference() for weight in copies[1].parameters())
    merged, _ = load_model(files.DIT, lora=read_lora(halves), strength=0.5, dtype=torch.float32)
    assert_equal(copies[1].state_dict(), merged.state_dict(), tolerance=1e-6)
    assert not torch.equal(copies[0].blocks[0].ffn[0].weight, copies[1].blocks[0].ffn[0].weight)

    before = {name: weight.clone() for name, weight in plain.model.diffusion_model.state_dict().items()}
    with torch.no_grad():
        for weight in copies[1].parameters():
            weight.zero_()
    assert_equal(plain.model.diffusion_model.state_dict(), before, tolerance=0)


def assert_equal(found: dict, expected: dict, *, tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=tolerance)


def check_accelerator() -> None:
    """Raise unless accelerate's global state, which another pack may have set, is restored afterwards."""
    others = Accelerator(cpu=True, mixed_precision="bf16")
    with open_accelerator(make_config("fp32"), Path(), torch.device("cpu")) as ours:
        assert (ours.device.type, ours.mixed_precision) == ("cpu", "no")
    assert AcceleratorState().mixed_precision == others.mixed_precision == "bf16"
    AcceleratorState._reset_state(True)
    with open_accelerator(make_config("bf16"), Path(), torch.device("cpu")) as ours:
        assert ours.mixed_precision == "bf16"
    assert AcceleratorState._shared_state == {}


def make_config(precision: str) -> TuneConfig:
    return TuneConfig(model=ModelConfig(miniature=True), learn=LearnConfig(precision=precision))


def check_codec() -> None:
    """Raise unless the host's VAE anchors two batches, one after the other, as ours does."""
    with torch.inference_mode():
        vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(files.VAE)))
    theirs, ours = create_codec(vae), Codec.of_vae(files.load_miniature().vae)
    for batch in (2, 1):
        latents_BFCHW = torch.randn(batch, 4, 16, 8, 8, generator=torch.Generator().manual_seed(batch))
        anchored = theirs.encode_anchor(latents_BFCHW)
        assert not anchored.is_inference()
        torch.testing.assert_close(anchored, ours.encode_anchor(latents_BFCHW), rtol=0, atol=TOLERANCE)
