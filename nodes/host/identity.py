"""The identity of a MODEL, as a hash: its weights, the patches on them, and the attention it computes with.

Two MODELs of one identity make the same video. A MODEL is opaque if a part of it cannot be inspected. Nothing made with
it is stored, because a MODEL that differs in this part could find it.
"""

import functools
import hashlib
import inspect
import logging
import re
import secrets
import time
from collections.abc import Callable, Iterator
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from uuid import UUID
from weakref import WeakKeyDictionary

import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...longlive.digest import hash_stream, hash_tensors
from ...longlive.model.attention import find_release, name_release
from ...longlive.model.kitchen import KITCHEN, list_fast_backends

NETWORK_PREFIX = "diffusion_model."
PLAIN_TYPES = (str, int, float, bool, bytes, type(None), type(Ellipsis), torch.dtype, frozenset)
MAX_PATCH_DEPTH = 12  # of nested values; deeper than any known patch
DIGEST_DIGITS = 16  # hex digits, enough to tell apart what one person has
UNNAMED_PACKAGES = ("torch", "einops")  # whose releases are not part of a key
RUN_CALLBACKS = ("on_pre_run", "on_load_after")  # kinds of callbacks that may change how a MODEL computes

# What the causal forward calls, by name below `diffusion_model`, and the modules that hold it.
CALLED_NAMES = re.compile(
    r"(patch_embedding|text_embedding|time_embedding|time_projection|head\.(norm|head|modulation)"
    r"|blocks\.\d+\.(modulation|norm[123]|ffn|(self|cross)_attn\.(q|k|v|o|norm_q|norm_k)))(\..*)?"
)
HOLDER_NAMES = re.compile(r"|blocks|head|blocks\.\d+|blocks\.\d+\.(self|cross)_attn")

log = logging.getLogger(__name__)

_digests_by_network: WeakKeyDictionary[torch.nn.Module, str] = WeakKeyDictionary()
_digests_of_opaque: WeakKeyDictionary[ModelPatcher, str] = WeakKeyDictionary()  # of MODELs that cannot be recognised
_digests_by_patches: WeakKeyDictionary[UUID, str | None] = WeakKeyDictionary()  # while a MODEL has these patches


def hash_model(patcher: ModelPatcher) -> str:
    """Hash every byte of the weights, once per network, and of the patches on them.

    A MODEL whose weights or patches cannot be hashed gets a random identity: no other MODEL has it, not even a clone.
    """
    if list_unrecognisable(patcher):
        return _digests_of_opaque.setdefault(patcher, secrets.token_hex(32))
    network = patcher.model.diffusion_model
    if network not in _digests_by_network:
        _digests_by_network[network] = _hash_weights(patcher)
    return (
        f"{_digests_by_network[network]} {_hash_patches(patcher)}" if patcher.patches else _digests_by_network[network]
    )


def _hash_weights(patcher: ModelPatcher) -> str:
    start = time.perf_counter()
    weights = hash_stream(iter_loaded_weights(patcher))
    log.info("hashed the weights of %s in %.1f s", type(patcher.model).__name__, time.perf_counter() - start)
    return hashlib.sha256(f"{weights} {patcher.model.get_dtype()}".encode()).hexdigest()


def describe_kernels(patcher: ModelPatcher) -> str:
    """Describe what computes with the weights, as any change of it rounds differently.

    That is the attention, the callbacks of a run, the classes of layers, the kernels of quantised layers and the
    precision of sums.
    """
    layers = {_describe_layer(layer) for layer in patcher.model.diffusion_model.modules()}
    half_sums = getattr(torch.backends.cuda.matmul, "allow_fp16_accumulation", False)
    attention = [optimized_attention.__name__, *_list_kernel_releases(optimized_attention)]
    given = [hash_value(value) for value in (get_attention_override(patcher), _list_run_callbacks(patcher)) if value]
    quantised = _list_quantised_kernels(patcher)
    return f"{' '.join([*attention, *map(str, given), *quantised])} {hash_value(sorted(layers))} {half_sums}"


def _list_quantised_kernels(patcher: ModelPatcher) -> list[str]:
    """List what computes with layers that ComfyUI holds quantised, and whether it widens their weights before that."""
    if not any(getattr(layer, "quant_format", None) for layer in patcher.model.diffusion_model.modules()):
        return []
    is_widened = getattr(patcher, "force_cast_weights", False)
    return [name_release("quantised", KITCHEN), *list_fast_backends(patcher.load_device), *["widened"] * is_widened]


def _describe_layer(layer: torch.nn.Module) -> str:
    """Describe a layer by its class; layers of GGUF loaders have settings that decide how they compute."""
    settings = [f"{name}={getattr(layer, name)}" for name in ("dequant_dtype", "patch_dtype") if hasattr(layer, name)]
    return " ".join([f"{type(layer).__module__}.{type(layer).__qualname__}", *settings])


def _list_kernel_releases(function: Callable) -> list[str]:
    """List the installed releases that one of ComfyUI's attention functions calls, such as SageAttention's."""
    inner = inspect.unwrap(function)
    if not isinstance(inner, FunctionType):
        return []
    used = [inner.__globals__.get(name) for name in _list_names(inner.__code__)]
    modules = {value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", "") for value in used}
    packages = {str(module).partition(".")[0] for module in modules} - {*UNNAMED_PACKAGES}
    return sorted(filter(None, map(find_release, packages)))


def list_unrecognisable(patcher: ModelPatcher) -> list[str]:
    """List what changes the weights of a MODEL, or what they do, in a way that cannot be hashed."""
    found = {
        "injected layers (a bypass LoRA)": patcher.injections,
        "functions on weights (another pack's)": patcher.weight_wrapper_patches,
        "replaced layers (such as compiled blocks)": [name for name in patcher.object_patches if is_called(name)],
        "weight patches of an unknown kind": _hash_patches(patcher) is None,
    }
    return [name for name, carried in found.items() if carried]


def is_called(name: str) -> bool:
    """Whether an object patch of this name replaces something that the causal forward calls."""
    path = f"{name}.".removeprefix(NETWORK_PREFIX).removesuffix(".")
    if not f"{name}.".startswith(NETWORK_PREFIX):
        return False
    return bool(CALLED_NAMES.fullmatch(path) or HOLDER_NAMES.fullmatch(path))


def list_opaque(patcher: ModelPatcher) -> list[str]:
    """List why the results of a MODEL cannot be stored: parts that cannot be recognised or inspected."""
    unseen = {
        "an attention override that cannot be inspected": hash_value(get_attention_override(patcher)) is None,
        "run callbacks that cannot be inspected": hash_value(_list_run_callbacks(patcher)) is None,
        "hooks on layers": any(map(has_hooks, patcher.model.diffusion_model.modules())),
    }
    return [*list_unrecognisable(patcher), *[name for name, carried in unseen.items() if carried]]


def has_hooks(layer: torch.nn.Module) -> bool:
    """Whether something is called before or after a layer. It may change the result; and the layer is not lent."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks)


def get_attention_override(patcher: ModelPatcher) -> object:
    """Get the function with which a node overrides ComfyUI's attention, if there is one."""
    return patcher.model_options.get("transformer_options", {}).get("optimized_attention_override")


def _list_run_callbacks(patcher: ModelPatcher) -> list:
    return [call for kind in RUN_CALLBACKS for calls in patcher.callbacks.get(kind, {}).values() for call in calls]


def hash_value(value: object) -> str | None:
    """Hash everything that `value` holds, equal for equal values; None if a part cannot be inspected."""
    sha = hashlib.sha256()
    try:
        _hash(sha, value, MAX_PATCH_DEPTH, set())
    except (TypeError, ValueError):  # an opaque part, or a closure cell that is still empty
        return None
    return sha.hexdigest()[:DIGEST_DIGITS]


def _hash_patches(patcher: ModelPatcher) -> str | None:
    """Hash all patches on weights, once: ComfyUI gives every change of them a new uuid."""
    if patcher.patches_uuid not in _digests_by_patches:
        _digests_by_patches[patcher.patches_uuid] = hash_value(sorted(patcher.patches.items()))
    return _digests_by_patches[patcher.patches_uuid]


def iter_loaded_weights(patcher: ModelPatcher) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights by name as they were loaded, in the dtype that ComfyUI computes from.

    A LoRA applied since, or a loader that hides them, changes nothing. With dynamic VRAM, ComfyUI keeps a weight in the
    file's dtype until it is needed, and notes in the layer which dtype it then gets.
    """
    network = patcher.model.diffusion_model
    originals: dict[str, Tensor] = {}
    pieces: set[str] = set()
    for key, saved in patcher.backup.items():
        name = key.removeprefix(NETWORK_PREFIX)
        if hasattr(saved.weight, "state_dict"):  # quantised
            quantised = saved.weight.state_dict(name)
            originals |= quantised
            pieces |= quantised.keys()
        else:
            originals[name] = saved.weight
    for key, weight in network.state_dict().items():
        original = originals[key] if key in originals else weight
        found = _find_parameter(network, key) if original.is_meta else original  # GGUF loaders show placeholders
        if found is not None:
            yield key, found if key in pieces else _cast_for_compute(network, key, found)


def _cast_for_compute(network: torch.nn.Module, key: str, weight: Tensor) -> Tensor:
    """Cast a weight as ComfyUI does before use; a quantised one stays as it is."""
    path, _, name = key.rpartition(".")
    try:
        layer = network.get_submodule(path)
    except AttributeError:
        return weight
    is_plain = type(getattr(layer, name, None)) in (Tensor, torch.nn.Parameter)
    return weight.to(getattr(layer, f"{name}_comfy_model_dtype", None) or weight.dtype) if is_plain else weight


def _find_parameter(network: torch.nn.Module, key: str) -> Tensor | None:
    path, _, name = key.rpartition(".")
    try:
        return getattr(network.get_submodule(path), name).data.as_subclass(Tensor)
    except AttributeError:  # not a weight: a key that marks the kind of file
        return None


def _hash(sha, value: object, depth: int, seen: set[int]) -> None:
    """Feed every part of `value` to `sha`. Raises TypeError if a part cannot be inspected."""
    if isinstance(value, PLAIN_TYPES):
        sha.update(
            f"{type(value).__name__} {sorted(map(repr, value)) if isinstance(value, frozenset) else value!r}".encode()
        )
        return
    if isinstance(value, Tensor):
        sha.update(hash_tensors({"": value}).encode())
        return
    if id(value) in seen:  # a function that calls itself
        return
    value = _unwrap(value)
    if isinstance(value, ModuleType):
        sha.update(f"{value.__name__} {find_release(value.__name__)}".encode())
        return
    if isinstance(value, type) or (isinstance(value, BuiltinFunctionType) and _is_stateless(value)):
        module = getattr(value, "__module__", None) or ""
        sha.update(f"{module} {value.__qualname__} {find_release(module)}".encode())
        return
    if not depth:
        raise TypeError("too deep")
    for part in _list_parts(value):
        _hash(sha, part, depth - 1, seen | {id(value)})


def _unwrap(value: object) -> object:
    """Unwrap a function from a compiler or a cache: `torch.compiler.disable`, Triton's JIT, `functools.cache`."""
    if isinstance(value, functools._lru_cache_wrapper):
        return _unwrap(value.__wrapped__)
    name = "fn" if type(value).__module__.partition(".")[0] == "triton" else "_torchdynamo_orig_callable"
    inner = getattr(value, name, None)
    return value if inner is None else _unwrap(inner)


def _is_stateless(function: BuiltinFunctionType) -> bool:
    """Whether it belongs to a module, a type or an extension, not to an object with state."""
    owner = function.__self__
    return owner is None or isinstance(owner, ModuleType | type) or type(owner).__name__ == "PyCapsule"


def _list_parts(value: object) -> list:
    """List the parts of a container, an adapter or a function, in order."""
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
        release = find_release(value.__globals__.get("__name__", ""))
        return [release, *given] if release else [value.__code__, _list_globals(value), *given]
    if isinstance(value, CodeType):
        return [value.co_code, value.co_names, value.co_consts]
    if (weights := getattr(value, "weights", None)) is not None:  # an adapter, such as a LoRA
        return [type(value).__qualname__, weights]
    raise TypeError(type(value))


def _list_globals(function: FunctionType) -> list:
    """List the globals that a function uses, with values; of functions of other packages, names and releases."""
    package = function.__module__.partition(".")[0]
    used = []
    for name in _list_names(function.__code__):
        value = function.__globals__.get(name)
        if isinstance(value, FunctionType) and value.__module__.partition(".")[0] != package:
            value = f"{value.__module__}.{value.__qualname__} {find_release(value.__module__)}"
        used += [name, value]
    return used


def _list_names(code: CodeType) -> list[str]:
    nested = [name for const in code.co_consts if isinstance(const, CodeType) for name in _list_names(const)]
    return sorted({*code.co_names, *nested})
