"""Checks of the hashes of what a MODEL calls: attention overrides, installed kernels, callbacks; run inside a host."""

import functools
import importlib
import itertools
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from comfy.ldm.modules.attention import wrap_attn
from comfy.patcher_extension import CallbacksMP
from comfyui_longlive.longlive.errors import LongLiveError
from comfyui_longlive.longlive.model import attention
from comfyui_longlive.nodes.host import model
from comfyui_longlive.nodes.host.identity import (
    describe_kernels,
    get_attention_override,
    hash_model,
    hash_value,
    list_opaque,
)
from identity import load_model

FLAG = "off"


def carry_override(override) -> SimpleNamespace:
    return SimpleNamespace(model_options={"transformer_options": {"optimized_attention_override": override}})


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
    """An installed kernel is hashed by its release, however it is wrapped; its code may not be readable."""
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
        model = load_model()
        model.model_options["transformer_options"]["optimized_attention_override"] = override(fastattn.quantised)
        assert list_opaque(model) == []

        install(Path(folder), "1.2.4")
        assert name(fastattn.quantised) not in (found, None)
        shutil.rmtree(Path(folder) / "fastattn-1.2.4.dist-info")
        forget_installed()
        assert name(fastattn.quantised) is None  # of no release, and it holds an object


def install(folder: Path, version: str) -> None:
    """Write a package as pip installs it, with a kernel whose code cannot be read."""
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
    attention._read_distributions.cache_clear()


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


def check_a_newer_kernel_replaces_pytorch_s_own() -> None:
    """Not what the user chose at the start, nor what a node chose."""

    def attention_pytorch(*_, **__):
        raise AssertionError("it is replaced")

    newer = (lambda q, k, v: q), "cudnn 91002"
    patcher, overridden = load_model(), load_model()
    overridden.model_options["transformer_options"]["optimized_attention_override"] = lambda original, *_: original
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "choose_newest_attention", lambda device, dtype: newer)
        before = model.as_causal_model(patcher)
        assert model.describe_attention(patcher) == model.optimized_attention.__name__ != "attention_pytorch"
        patch.setattr(model, "optimized_attention", attention_pytorch)
        after = model.as_causal_model(patcher)
        assert (after.attend, model.describe_attention(patcher)) == newer
        assert after.kernel == before.kernel.replace("cpu ", "cpu cudnn 91002 ")
        assert model.describe_attention(overridden) == "attention_pytorch, overridden by a node"
        assert model.as_causal_model(overridden).attend is not newer[0]
        patch.setattr(model, "choose_newest_attention", lambda device, dtype: None)
        assert model.as_causal_model(patcher).kernel == before.kernel


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
    """The effect of a callback is unknown before a run, so its code is part of the key, or nothing is stored."""
    plain, first, second, same, stateful = (load_model() for _ in range(5))
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


def check_methods_of_objects_are_not_functions() -> None:
    """One builtin method of two objects counts as two functions."""
    assert hash_value([].append) != hash_value([1].append)
    assert hash_value(itertools.count().__reduce__) is None
    assert hash_value(len) == hash_value(len)
