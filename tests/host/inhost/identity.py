"""Checks that MODELs of different results have different hashes, and equal MODELs the same; run inside a host."""

import contextlib
import functools
import importlib
import itertools
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import comfy.memory_management
import comfy.model_management
import comfy.sd
import pytest
import torch
from comfy.ldm.modules.attention import wrap_attn
from comfy.model_base import BaseModel
from comfy.patcher_extension import CallbacksMP
from comfyui_longlive.longlive.errors import LongLiveError
from comfyui_longlive.nodes.host import identity
from comfyui_longlive.nodes.host.identity import (
    describe_kernels,
    get_attention_override,
    hash_model,
    hash_value,
    list_opaque,
    list_unrecognisable,
)
from model_files import make_dit_weights, make_lora_weights
from torch import Tensor, nn

FLAG = "off"


def load(**changes: Tensor):
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


def carry_override(override) -> SimpleNamespace:
    return SimpleNamespace(model_options={"transformer_options": {"optimized_attention_override": override}})


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
        patches_uuid="uuid",
    )


def check_weights() -> None:
    bias = make_dit_weights()["head.head.bias"].clone()
    bias[0] += 1e-4
    assert hash_model(load()) == hash_model(load())
    assert hash_model(load()) != hash_model(load(**{"head.head.bias": bias}))


def check_precision_of_weights() -> list[str]:
    """Each choice of `weight_dtype` is a model of its own, the same with dynamic VRAM and without."""
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
    """Loading casts some parameters in place (`modulation`) and lays a LoRA on others; the model stays the same."""
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
        model = load()
        assert hash_model(model) == hash_model(model.clone()) == hash_model(model)
    assert len(lines) == 1
    assert re.fullmatch(r"hashed the weights of WAN21 in \d+\.\d s", lines[0])


def check_opaque_models() -> None:
    """Nothing tells what they compute, so no two are the same."""
    for carried in ("injections", "weight_wrapper_patches", "object_patches"):
        first, second = load(), load()
        for patcher in (first, second):
            setattr(patcher, carried, {"diffusion_model.blocks.0.ffn": [object()]})
            assert len(list_opaque(patcher)) == len(list_unrecognisable(patcher)) == 1
        assert len({hash_model(patcher) for patcher in (first, second, first.clone(), load())}) == 4
        assert hash_model(first) == hash_model(first)
    assert list_opaque(load()) == []
    stateful = load()
    stateful.model_options["transformer_options"]["optimized_attention_override"] = functools.partial(next, object())
    assert len(list_opaque(stateful)) == 1
    assert hash_model(stateful) == hash_model(load())  # its weights are those of any other


def check_attention_overrides() -> None:
    def sage(mode: object):
        def kernel(*_):
            return mode

        def override(original, *arguments):
            return kernel(original, *arguments)

        return override

    def unfinished():
        def override(*_):
            return later

        if override is None:
            later = 1
        return override

    def name(override) -> str | None:
        return hash_value(get_attention_override(carry_override(override)))

    def constant(*_):
        return FLAG, 1

    def other_constant(*_):
        return FLAG, 2

    other_constant.__qualname__ = constant.__qualname__
    assert name(constant) != name(other_constant)
    before, globals()["FLAG"] = name(constant), "on"
    assert name(constant) != before
    globals()["FLAG"] = "off"
    assert name(constant) == before

    assert name(sage("fp8")) == name(sage("fp8"))
    assert len({name(None), name(sage("fp8")), name(sage("fp16"))}) == 3
    assert name(functools.partial(sage("fp8"), 1)) != name(functools.partial(sage("fp8"), 2))
    for unknown in (sage(itertools.count()), LongLiveError(), unfinished()):
        assert name(unknown) is None


def check_installed_kernels() -> None:
    """A kernel that was installed is its release, however it is wrapped; what it is made of cannot be looked into."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        install(Path(folder), "1.2.3")
        import fastattn

        def override(kernel, compiled: bool = False, mode: str = "fp16"):
            """A chain of closures as KJNodes' Patch Sage Attention makes it; by default its kernel is not compiled."""

            def call(q, k, v):
                return kernel(q, k, v, mode=mode)

            call = call if compiled else torch.compiler.disable()(call)

            @wrap_attn
            def attention(q, k, v, heads, **_):
                return call(q, k, v).flatten(-2)

            return lambda original, *args, **kwargs: attention.__wrapped__(*args, **kwargs)

        def name(function, **settings) -> str | None:
            return hash_value(get_attention_override(carry_override(override(function, **settings))))

        found = name(fastattn.quantised)
        assert found is not None
        assert found == name(fastattn.quantised) == name(fastattn.cached) == name(fastattn.quantised, compiled=True)
        others = (fastattn.exact, fastattn.made("a"), fastattn.made("b"))
        assert len({found, *map(name, others), name(fastattn.quantised, mode="int8")}) == 5
        assert name(fastattn.kernel) is None  # an object, which may hold a state
        model = load()
        model.model_options["transformer_options"]["optimized_attention_override"] = override(fastattn.quantised)
        assert list_opaque(model) == []

        install(Path(folder), "1.2.4")
        assert name(fastattn.quantised) not in (found, None)
        shutil.rmtree(Path(folder) / "fastattn-1.2.4.dist-info")
        forget_installed()
        assert name(fastattn.quantised) is None  # of no release, and it holds an object


def install(folder: Path, version: str) -> None:
    """A package as pip leaves it, with a kernel that nothing can look into."""
    for old in folder.glob("*.dist-info"):
        shutil.rmtree(old)
    info = folder / f"fastattn-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: fastattn\nVersion: {version}\n")
    (info / "top_level.txt").write_text("fastattn\n")
    (folder / "fastattn.py").write_text(FASTATTN)
    forget_installed()


def forget_installed() -> None:
    importlib.invalidate_caches()
    identity._read_distributions.cache_clear()


FASTATTN = """
import functools

kernel = object()

def quantised(q, k, v, mode):
    return kernel(q, k, v, mode)

def exact(q, k, v, mode):
    return kernel(q, k, v, mode)

def made(setting):
    def inner(q, k, v, mode):
        return kernel(q, k, v, setting)
    return inner

cached = functools.lru_cache(quantised)
"""


def check_kernels_of_triton_are_their_source() -> None:
    class JITFunction:
        __module__ = "triton.runtime.jit"

        def __init__(self, fn) -> None:
            self.fn, self.compiled = fn, object()

    def one(x):
        return x + 1

    def two(x):
        return x + 2

    assert hash_value(JITFunction(one)) == hash_value(JITFunction(one)) == hash_value(one)
    assert hash_value(JITFunction(two)) not in (hash_value(one), None)


def check_calls_of_a_run() -> None:
    """What a callback does cannot be seen before a run; what it is, is part of the key, or nothing is stored."""
    plain, first, second, same, stateful = (load() for _ in range(5))
    for patcher, call in (
        (first, lambda _: 1),
        (second, lambda _: 2),
        (same, lambda _: 1),
        (stateful, functools.partial(next, object())),
    ):
        patcher.add_callback(CallbacksMP.ON_PRE_RUN, call)
    assert len({describe_kernels(patcher) for patcher in (plain, first, second)}) == 3
    assert describe_kernels(first) == describe_kernels(same)
    assert [len(list_opaque(patcher)) for patcher in (plain, first, stateful)] == [0, 0, 1]
    assert hash_model(stateful) == hash_model(plain)


def check_settings_of_gguf_layers() -> None:
    """City96's loader keeps on the class of its layers in which precision they unpack."""
    settings = []
    for dequant_dtype in (None, torch.float16):
        patcher = load()
        layer = patcher.model.diffusion_model.head.head
        layer.dequant_dtype, layer.patch_dtype = dequant_dtype, None
        settings.append(describe_kernels(patcher))
    assert len({*settings, describe_kernels(load())}) == 3


def check_methods_of_objects_are_not_functions() -> None:
    """The same builtin of two objects is two functions."""
    assert hash_value([].append) != hash_value([1].append)
    assert hash_value(itertools.count().__reduce__) is None
    assert hash_value(len) == hash_value(len)


def check_patched_quantised_weights_are_known_by_their_originals() -> None:
    """A quantised weight is saved whole and listed in pieces."""

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
