"""Checks that MODELs of different results have different hashes, and equal MODELs the same; run inside a host."""

import contextlib
import functools
import re
import uuid
from collections.abc import Iterator
from types import SimpleNamespace

import comfy.memory_management
import comfy.model_management
import comfy.sd
import pytest
import torch
from comfy.model_base import BaseModel
from comfyui_longlive.nodes.host import identity
from comfyui_longlive.nodes.host.identity import (
    describe_kernels,
    hash_model,
    list_opaque,
    list_unrecognisable,
)
from model_files import make_dit_weights, make_lora_weights
from torch import Tensor, nn


def load_model(**changes: Tensor):
    return comfy.sd.load_diffusion_model_state_dict(make_dit_weights() | changes)


@contextlib.contextmanager
def simulate_dynamic_vram() -> Iterator[None]:
    """Load networks as a host does on an NVIDIA card: parameters keep the dtype of the file until they are used."""
    load = BaseModel.load_model_weights

    def assigned(model: BaseModel, weights: dict, prefix: str = "", assign: bool = False) -> BaseModel:
        return load(model, weights, prefix, True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BaseModel, "load_model_weights", assigned)
        patch.setattr(comfy.memory_management, "aimdo_enabled", True)
        yield


def make_patcher(network: nn.Module, **backup: object) -> SimpleNamespace:
    """Make an object with the attributes of a ModelPatcher that a hash reads."""
    return SimpleNamespace(
        model=SimpleNamespace(diffusion_model=network, get_dtype=lambda: torch.float32),
        backup={f"diffusion_model.{key}": SimpleNamespace(weight=weight) for key, weight in backup.items()},
        patches={},
        object_patches={},
        injections={},
        weight_wrapper_patches={},
        model_options={},
        patches_uuid=uuid.uuid4(),
    )


def check_weights() -> None:
    bias = make_dit_weights()["head.head.bias"].clone()
    bias[0] += 1e-4
    assert hash_model(load_model()) == hash_model(load_model())
    assert hash_model(load_model()) != hash_model(load_model(**{"head.head.bias": bias}))


def check_precision_of_weights() -> list[str]:
    """Each choice of `weight_dtype` has a different hash, the same with dynamic VRAM and without."""
    file = {name: weight.bfloat16() for name, weight in make_dit_weights().items()}
    choices = (
        {},
        *({"dtype": dtype} for dtype in (torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)),
        {"dtype": torch.float8_e4m3fn, "fp8_optimizations": True},
    )
    digests = []
    for options in choices:
        static = comfy.sd.load_diffusion_model_state_dict({**file}, model_options=options)
        with simulate_dynamic_vram():
            dynamic = comfy.sd.load_diffusion_model_state_dict({**file}, model_options=options)
        assert dynamic.model.diffusion_model.head.head.weight.dtype is torch.bfloat16
        assert hash_model(static) == hash_model(dynamic), options
        assert describe_kernels(static) == describe_kernels(dynamic)
        digests.append(hash_model(static))
    *plain, fast = digests
    assert len({*plain}) == len(plain)
    assert fast == plain[3]  # of the same weights; what computes them tells the two apart, where it differs
    return digests


def check_fast_fp8_has_kernels_of_its_own() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comfy.model_management, "supports_fp8_compute", lambda *_: True)
        options = {"dtype": torch.float8_e4m3fn}
        plain, fast = (
            comfy.sd.load_diffusion_model_state_dict(make_dit_weights(), model_options=options | chosen)
            for chosen in ({}, {"fp8_optimizations": True})
        )
    assert describe_kernels(plain) != describe_kernels(fast)


def check_weights_that_were_in_use() -> None:
    """Loading casts some parameters in place (`modulation`) and patches others with a LoRA; the hash stays the same."""
    file = {name: weight.bfloat16() for name, weight in make_dit_weights().items()}
    lora = {
        f"diffusion_model.{name.removeprefix('base_model.model.')}": pair for name, pair in make_lora_weights().items()
    }
    with simulate_dynamic_vram():
        fresh, used = (comfy.sd.load_diffusion_model_state_dict({**file}) for _ in range(2))
    patched, _ = comfy.sd.load_lora_for_models(used, None, lora, 1.0, 0)
    comfy.model_management.load_models_gpu([patched])
    assert patched.backup
    for module in used.model.diffusion_model.modules():
        if hasattr(module, "modulation"):
            module.modulation.data = module.modulation.data.to(module.modulation_comfy_model_dtype)
    assert used.model.diffusion_model.head.modulation.dtype is torch.float32
    assert hash_model(used) == hash_model(fresh)


def check_weights_are_hashed_once_and_said_so() -> None:
    lines: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(identity.log, "info", lambda text, *values: lines.append(text % values))
        model = load_model()
        assert hash_model(model) == hash_model(model.clone()) == hash_model(model)
    assert len(lines) == 1
    assert re.fullmatch(r"hashed the weights of WAN21 in \d+\.\d s", lines[0])


def check_opaque_models() -> None:
    """What they compute is unknown, so no two have the same hash."""
    for carried in ("injections", "weight_wrapper_patches", "object_patches"):
        first, second = load_model(), load_model()
        for patcher in (first, second):
            setattr(patcher, carried, {"diffusion_model.blocks.0.ffn": [object()]})
            assert len(list_opaque(patcher)) == len(list_unrecognisable(patcher)) == 1
        assert len({hash_model(patcher) for patcher in (first, second, first.clone(), load_model())}) == 4
        assert hash_model(first) == hash_model(first)
    assert list_opaque(load_model()) == []
    stateful = load_model()
    stateful.model_options["transformer_options"]["optimized_attention_override"] = functools.partial(next, object())
    assert len(list_opaque(stateful)) == 1
    assert hash_model(stateful) == hash_model(load_model())  # its weights are those of any other


def check_settings_of_gguf_layers() -> None:
    """City96's loader sets the precision in which layers unpack on the class of the layers."""
    settings = []
    for dequant_dtype in (None, torch.float16):
        patcher = load_model()
        layer = patcher.model.diffusion_model.head.head
        layer.dequant_dtype, layer.patch_dtype = dequant_dtype, None
        settings.append(describe_kernels(patcher))
    assert len({*settings, describe_kernels(load_model())}) == 3


def check_patched_quantised_weights_are_known_by_their_originals() -> None:
    """A quantised weight is backed up as one object but listed as several tensors."""

    class Quantised:
        def state_dict(self, prefix: str) -> dict[str, Tensor]:
            return {prefix: torch.ones(3), f"{prefix}_scale": torch.ones(())}

    class Network(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.register_buffer("weight", torch.full((3,), value))
            self.register_buffer("weight_scale", torch.tensor(value))

    patched = make_patcher(Network(2.0), weight=Quantised())
    assert hash_model(patched) == hash_model(make_patcher(Network(1.0)))
    assert hash_model(patched) != hash_model(make_patcher(Network(2.0)))


def check_weights_a_loader_hides_are_found() -> None:
    """GGUF loaders list placeholders, and one key that only says what the file is."""

    class Hidden(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.full((3,), value), requires_grad=False)

        def state_dict(self, **_) -> dict[str, Tensor]:
            return {"weight": torch.empty(3, device="meta"), "temp.weight": torch.empty(3, device="meta")}

    one, same, other = (make_patcher(Hidden(value)) for value in (1.0, 1.0, 2.0))
    assert hash_model(one) == hash_model(same) != hash_model(other)
