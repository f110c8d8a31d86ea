"""Checks of our loaders: the dtype they load in, and loading again when a node asks for it; run inside a host."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import comfy.model_management
import comfy.sd
import folder_paths
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy_extras.nodes_torch_compile import TorchCompileModel
from comfyui_longlive.longlive.weights.lora import Lora
from comfyui_longlive.nodes.host.identity import hash_model
from comfyui_longlive.nodes.host.loading import MiniatureLatents
from comfyui_longlive.nodes.host.model import list_ignored
from comfyui_longlive.nodes.models import MiniatureLoader, ModelLoader
from compute import begin_session, extend_session
from identity import simulate_dynamic_vram
from model_files import ORIGINAL_DIT, ORIGINAL_LORA, write_models

from nodes import LoraLoaderModelOnly


def check_models_are_loaded_again_without_dynamic_vram() -> None:
    """ComfyUI's TorchCompileModel asks for that. The MODELs only claim to be dynamic, as on an NVIDIA card."""
    with add_model_files():
        loaded = ModelLoader.execute(ORIGINAL_DIT.name, ORIGINAL_LORA.name, 0.5, "bf16").result[0]
        miniature, _, _, teacher = MiniatureLoader.execute().result
        for model in (loaded, miniature, teacher):
            expected = hash_model(model)
            model.is_dynamic = lambda: True
            clone = compile_model(model)
            assert type(clone) is ModelPatcher
            assert clone.model is not model.model
            assert hash_model(clone) == expected
            assert list_ignored(clone) == []
            del model.is_dynamic
        assert isinstance(compile_model(miniature).model.latent_format, MiniatureLatents)
        clone = compile_model(loaded)
        assert torch.equal(
            extend_session(clone, begin_session(clone)).blocks[0],
            extend_session(loaded, begin_session(loaded)).blocks[0],
        )


def check_the_released_lora_in_a_stock_node() -> None:
    """It has no effect there, as README says. Under ComfyUI's names it equals the LoRA that our loader merges."""
    with add_model_files():
        base = ModelLoader.execute(ORIGINAL_DIT.name, "none", 1.0, "fp32").result[0]
        [stock] = LoraLoaderModelOnly().load_lora_model_only(base, ORIGINAL_LORA.name, 1.0)
        assert stock.patches == {}
        assert hash_model(stock) == hash_model(base)

        path = folder_paths.get_full_path_or_raise("loras", ORIGINAL_LORA.name)
        named = Lora.read(path).as_comfy_state()
        patched, _ = comfy.sd.load_lora_for_models(base, None, named, 1.0, 0.0)
        merged = ModelLoader.execute(ORIGINAL_DIT.name, ORIGINAL_LORA.name, 1.0, "fp32").result[0]
        made = [extend_session(model, begin_session(model)).blocks[0] for model in (base, patched, merged)]
        assert (made[0] - made[2]).abs().max() > 1e-2
        torch.testing.assert_close(made[1], made[2], rtol=0, atol=1e-4)


@contextlib.contextmanager
def add_model_files() -> Iterator[None]:
    """Add a models folder with the tiny files to ComfyUI's."""
    with tempfile.TemporaryDirectory() as folder:
        write_models(Path(folder))
        for kind in ("diffusion_models", "loras"):
            folder_paths.add_model_folder_path(kind, str(Path(folder) / kind))
        yield


def compile_model(model: ModelPatcher) -> ModelPatcher:
    """Apply TorchCompileModel; its schema differs between releases. Nothing is compiled before the model runs."""
    return TorchCompileModel.execute(model, "inductor").result[0]


def check_default_dtype() -> None:
    """Weights of fp32 are kept in the dtype the host computes in, which dynamic VRAM alone would not do."""
    with add_model_files(), simulate_dynamic_vram(), pytest.MonkeyPatch.context() as patch:
        for chosen, kept in (
            (torch.float16, torch.float16),
            (torch.bfloat16, torch.bfloat16),
            (torch.float32, torch.float32),
        ):
            patch.setattr(comfy.model_management, "unet_dtype", lambda *_, chosen=chosen, **__: chosen)
            model = ModelLoader.execute(ORIGINAL_DIT.name, "none", 1.0, "default").result[0]
            network = model.model.diffusion_model
            assert {weight.dtype for weight in network.parameters()} == {kept}
            assert model.model.get_dtype() is chosen
