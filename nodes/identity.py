"""What a MODEL is, as a hash: its weights, what is patched onto them, and the attention it computes with.

Two MODELs of one identity make the same video. What cannot be looked into is `opaque`: then nothing made with it is
stored, for it would be found again by a MODEL that is not the same.
"""

import functools
import hashlib
import importlib.metadata
import inspect
import logging
import re
import secrets
import time
from collections.abc import Callable, Iterator
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from weakref import WeakKeyDictionary

import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..longlive.digest import digest_of_stream, digest_of_tensors

PREFIX = "diffusion_model."
PLAIN = (str, int, float, bool, bytes, type(None), type(Ellipsis), torch.dtype, frozenset)
DEPTH = 12  # of things in things; deeper than any known patch
SHORT = 16  # hex digits, enough to tell apart what one person has
NO_KERNELS = ("torch", "einops")  # packages whose release a key does not name
CALLS_OF_A_RUN = ("on_pre_run", "on_load_after")  # callbacks that may change how a MODEL computes

# What the causal forward calls, by name below `diffusion_model`, and the modules that hold these.
CALLED = re.compile(
    r"(patch_embedding|text_embedding|time_embedding|time_projection|head\.(norm|head|modulation)"
    r"|blocks\.\d+\.(modulation|norm[123]|ffn|(self|cross)_attn\.(q|k|v|o|norm_q|norm_k)))(\..*)?"
)
HOLDING = re.compile(r"|blocks|head|blocks\.\d+|blocks\.\d+\.(self|cross)_attn")

log = logging.getLogger(__name__)

_digests: WeakKeyDictionary[torch.nn.Module, str] = WeakKeyDictionary()
_own_digests: WeakKeyDictionary[ModelPatcher, str] = WeakKeyDictionary()  # of MODELs that nobody can recognise
_patch_identities: dict[object, str | None] = {}  # by uuid


def model_digest(patcher: ModelPatcher) -> str:
    """The identity of a MODEL: every byte of its weights, hashed once, and of the patches on them.

    A MODEL that is `unrecognisable` has an identity of its own, which no other has, its clones neither.
    """
    if unrecognisable(patcher):
        return _own_digests.setdefault(patcher, secrets.token_hex(32))
    network = patcher.model.diffusion_model
    if network not in _digests:
        _digests[network] = _hash_weights(patcher)
    return f"{_digests[network]} {_patches(patcher)}" if patcher.patches else _digests[network]


def _hash_weights(patcher: ModelPatcher) -> str:
    start = time.perf_counter()
    weights = digest_of_stream(weights_as_loaded(patcher))
    log.info("hashed the weights of %s in %.1f s", type(patcher.model).__name__, time.perf_counter() - start)
    return hashlib.sha256(f"{weights} {patcher.model.get_dtype()}".encode()).hexdigest()


def kernels(patcher: ModelPatcher) -> str:
    """What computes a MODEL: attention, calls of a run, layers, precision of sums. Others round differently."""
    layers = {_kind(layer) for layer in patcher.model.diffusion_model.modules()}
    half_sums = getattr(torch.backends.cuda.matmul, "allow_fp16_accumulation", False)
    attention = [optimized_attention.__name__, *_kernel_releases(optimized_attention)]
    given = [identity_of(value) for value in (attention_override(patcher), _calls_of_a_run(patcher)) if value]
    return f"{' '.join([*attention, *map(str, given)])} {identity_of(sorted(layers))} {half_sums}"


def _kind(layer: torch.nn.Module) -> str:
    """The kind of a layer; that of GGUF loaders keeps on its class how it computes."""
    settings = [f"{name}={getattr(layer, name)}" for name in ("dequant_dtype", "patch_dtype") if hasattr(layer, name)]
    return " ".join([f"{type(layer).__module__}.{type(layer).__qualname__}", *settings])


def _kernel_releases(function: Callable) -> list[str]:
    """The installed releases that one of ComfyUI's attention functions calls, such as SageAttention's."""
    inner = inspect.unwrap(function)
    if not isinstance(inner, FunctionType):
        return []
    used = [inner.__globals__.get(name) for name in _names(inner.__code__)]
    modules = {value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", "") for value in used}
    packages = {str(module).partition(".")[0] for module in modules} - {*NO_KERNELS}
    return sorted(filter(None, map(_release, packages)))


def unrecognisable(patcher: ModelPatcher) -> list[str]:
    """What changes the weights of a MODEL, or what they do, in a way no hash can tell."""
    found = {
        "injections (a bypass LoRA)": patcher.injections,
        "functions on weights": patcher.weight_wrapper_patches,
        "patched objects": [name for name in patcher.object_patches if is_called(name)],
        "patches of an unknown kind": _patches(patcher) is None,
    }
    return [name for name, carried in found.items() if carried]


def is_called(name: str) -> bool:
    """Whether an object patch of this name replaces something that the causal forward calls."""
    path = f"{name}.".removeprefix(PREFIX).removesuffix(".")
    if not f"{name}.".startswith(PREFIX):
        return False
    return bool(CALLED.fullmatch(path) or HOLDING.fullmatch(path))


def opaque(patcher: ModelPatcher) -> list[str]:
    """What makes the results of a MODEL unlike those of any other: what cannot be recognised, or computes unseen."""
    unseen = {
        "an attention override that holds a state": identity_of(attention_override(patcher)) is None,
        "calls of a run that hold a state": identity_of(_calls_of_a_run(patcher)) is None,
    }
    return [*unrecognisable(patcher), *[name for name, carried in unseen.items() if carried]]


def attention_override(patcher: ModelPatcher) -> object:
    """The function that a node put over ComfyUI's attention, if one did."""
    return patcher.model_options.get("transformer_options", {}).get("optimized_attention_override")


def _calls_of_a_run(patcher: ModelPatcher) -> list:
    return [call for kind in CALLS_OF_A_RUN for calls in patcher.callbacks.get(kind, {}).values() for call in calls]


def identity_of(value: object) -> str | None:
    """A hash of all that `value` holds, equal for equal ones; None where something in it cannot be looked into."""
    sha = hashlib.sha256()
    try:
        _hash(sha, value, DEPTH, set())
    except (TypeError, ValueError):  # something opaque, or the cell of a closure that is still empty
        return None
    return sha.hexdigest()[:SHORT]


def _patches(patcher: ModelPatcher) -> str | None:
    """The identity of all patches on weights, looked at once: ComfyUI gives every change of them a new uuid."""
    if patcher.patches_uuid not in _patch_identities:
        _patch_identities[patcher.patches_uuid] = identity_of(sorted(patcher.patches.items()))
    return _patch_identities[patcher.patches_uuid]


def weights_as_loaded(patcher: ModelPatcher) -> Iterator[tuple[str, Tensor]]:
    """The weights by name in the precision the host computes from, whatever that has done to them since.

    They are those that were loaded also while a LoRA lies on them, and where a loader hides them. A host that loads
    weights when they are needed (dynamic VRAM) keeps the file's until then; the model's dtype stands beside them.
    """
    network = patcher.model.diffusion_model
    originals: dict[str, Tensor] = {}
    pieces: set[str] = set()
    for key, saved in patcher.backup.items():
        name = key.removeprefix(PREFIX)
        if hasattr(saved.weight, "state_dict"):  # quantised
            quantised = saved.weight.state_dict(name)
            originals |= quantised
            pieces |= quantised.keys()
        else:
            originals[name] = saved.weight
    for key, weight in network.state_dict().items():
        original = originals[key] if key in originals else weight
        found = _parameter(network, key) if original.is_meta else original  # GGUF loaders give placeholders
        if found is not None:
            yield key, found if key in pieces else _as_computed(network, key, found)


def _as_computed(network: torch.nn.Module, key: str, weight: Tensor) -> Tensor:
    """A weight as the host casts it before use; a quantised one as it is."""
    path, _, name = key.rpartition(".")
    try:
        layer = network.get_submodule(path)
    except AttributeError:
        return weight
    is_plain = type(getattr(layer, name, None)) in (Tensor, torch.nn.Parameter)
    return weight.to(getattr(layer, f"{name}_comfy_model_dtype", None) or weight.dtype) if is_plain else weight


def _parameter(network: torch.nn.Module, key: str) -> Tensor | None:
    path, _, name = key.rpartition(".")
    try:
        return getattr(network.get_submodule(path), name).data.as_subclass(Tensor)
    except AttributeError:  # a key that only says of what kind the file is
        return None


def _hash(sha, value: object, depth: int, seen: set[int]) -> None:
    """Feed everything `value` consists of to `sha`. Raises TypeError at what cannot be looked into."""
    if isinstance(value, PLAIN):
        sha.update(
            f"{type(value).__name__} {sorted(map(repr, value)) if isinstance(value, frozenset) else value!r}".encode()
        )
        return
    if isinstance(value, Tensor):
        sha.update(digest_of_tensors({"": value}).encode())
        return
    if id(value) in seen:  # a function that calls itself
        return
    value = _without_wrapper(value)
    if isinstance(value, ModuleType):
        sha.update(f"{value.__name__} {_release(value.__name__)}".encode())
        return
    if isinstance(value, type) or (isinstance(value, BuiltinFunctionType) and _is_free(value)):
        module = getattr(value, "__module__", None) or ""
        sha.update(f"{module} {value.__qualname__} {_release(module)}".encode())
        return
    if not depth:
        raise TypeError("too deep")
    for part in _parts(value):
        _hash(sha, part, depth - 1, seen | {id(value)})


def _without_wrapper(value: object) -> object:
    """What a compiler or a cache was put around: `torch.compiler.disable`, Triton's JIT, `functools.cache`."""
    if isinstance(value, functools._lru_cache_wrapper):
        return _without_wrapper(value.__wrapped__)
    name = "fn" if type(value).__module__.partition(".")[0] == "triton" else "_torchdynamo_orig_callable"
    inner = getattr(value, name, None)
    return value if inner is None else _without_wrapper(inner)


def _is_free(function: BuiltinFunctionType) -> bool:
    """Whether it belongs to a module, a type or an extension, and not to some object with a state."""
    owner = function.__self__
    return owner is None or isinstance(owner, ModuleType | type) or type(owner).__name__ == "PyCapsule"


def _parts(value: object) -> list:
    """What a container, an adapter or a function consists of, in order."""
    if isinstance(value, list | tuple):
        return [len(value), *value]
    if isinstance(value, dict):
        return [part for item in sorted(value.items()) for part in item]
    if isinstance(value, functools.partial):
        return ["partial", value.func, *value.args, value.keywords]
    if isinstance(value, BuiltinFunctionType):
        return [value.__name__, value.__self__]
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        given = [value.__qualname__, cells, value.__defaults__, value.__kwdefaults__]
        release = _release(value.__globals__.get("__name__", ""))
        return [release, *given] if release else [value.__code__, _globals(value), *given]
    if isinstance(value, CodeType):
        return [value.co_code, value.co_names, value.co_consts]
    if (weights := getattr(value, "weights", None)) is not None:  # an adapter, such as a LoRA
        return [type(value).__qualname__, weights]
    raise TypeError(type(value))


def _globals(function: FunctionType) -> list:
    """The globals a function uses; functions of other packages by their names, which stand for a release."""
    package = function.__module__.partition(".")[0]
    used = []
    for name in _names(function.__code__):
        value = function.__globals__.get(name)
        if isinstance(value, FunctionType) and value.__module__.partition(".")[0] != package:
            value = f"{value.__module__}.{value.__qualname__} {_release(value.__module__)}"
        used += [name, value]
    return used


def _release(module: str) -> str:
    """Name and version of the installed distribution that a module belongs to; empty for one that is in none."""
    names = {*_distributions().get(module.partition(".")[0], ())}
    return " ".join(f"{name} {importlib.metadata.version(name)}" for name in sorted(names))


@functools.cache
def _distributions() -> dict[str, list[str]]:
    return dict(importlib.metadata.packages_distributions())


def _names(code: CodeType) -> list[str]:
    nested = [name for const in code.co_consts if isinstance(const, CodeType) for name in _names(const)]
    return sorted({*code.co_names, *nested})
