"""What a MODEL is, as a hash: its weights, what is patched onto them, and the attention it computes with.

Two MODELs of one identity make the same video. What cannot be looked into is `opaque`: then nothing made with it is
stored, for it would be found again by a MODEL that is not the same.
"""

import functools
import hashlib
from collections.abc import Iterator
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from weakref import WeakKeyDictionary

import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..longlive.digest import digest_of_tensors

PREFIX = "diffusion_model."
PLAIN = (str, int, float, bool, bytes, type(None), type(Ellipsis), torch.dtype, frozenset)
DEPTH = 12  # of things in things; deeper than any known patch
SHORT = 16  # hex digits, enough to tell apart what one person has

_digests: WeakKeyDictionary[torch.nn.Module, str] = WeakKeyDictionary()
_patch_identities: dict[object, str | None] = {}  # by uuid


def model_digest(patcher: ModelPatcher) -> str:
    """The identity of a MODEL: every byte of its weights, hashed once, and of the patches on them.

    A MODEL that is `unrecognisable` has an identity of its own, which no other ever has.
    """
    network = patcher.model.diffusion_model
    if network not in _digests:
        _digests[network] = digest_of_tensors(dict(weights_as_loaded(patcher)))
    if unrecognisable(patcher):
        return hashlib.sha256(f"{_digests[network]} {patcher.patches_uuid}".encode()).hexdigest()
    return f"{_digests[network]} {_patches(patcher)}" if patcher.patches else _digests[network]


def kernels(patcher: ModelPatcher) -> str:
    """What computes a MODEL: attention, kinds of layers, precision of sums. Others round differently."""
    layers = {
        f"{type(layer).__module__}.{type(layer).__qualname__}" for layer in patcher.model.diffusion_model.modules()
    }
    half_sums = getattr(torch.backends.cuda.matmul, "allow_fp16_accumulation", False)
    attention = f"{optimized_attention.__name__} {identity_of(attention_override(patcher))}"
    return f"{attention} {identity_of(sorted(layers))} {half_sums}"


def unrecognisable(patcher: ModelPatcher) -> list[str]:
    """What changes the weights of a MODEL, or what they do, in a way no hash can tell."""
    found = {
        "injections (a bypass LoRA)": patcher.injections,
        "functions on weights": patcher.weight_wrapper_patches,
        "patched objects": [name for name in patcher.object_patches if name.startswith(PREFIX)],
        "patches of an unknown kind": _patches(patcher) is None,
    }
    return [name for name, carried in found.items() if carried]


def opaque(patcher: ModelPatcher) -> list[str]:
    """What makes the results of a MODEL unlike those of any other: what cannot be recognised, or computes unseen."""
    unseen = identity_of(attention_override(patcher)) is None
    return [*unrecognisable(patcher), *["an attention override that holds a state"] * unseen]


def attention_override(patcher: ModelPatcher) -> object:
    """The function that a node put over ComfyUI's attention, if one did."""
    return patcher.model_options.get("transformer_options", {}).get("optimized_attention_override")


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
    """The weights by name as they were loaded, also while a LoRA lies on them, also where a loader hides them."""
    network = patcher.model.diffusion_model
    originals: dict[str, Tensor] = {}
    for key, saved in patcher.backup.items():
        pieces = saved.weight.state_dict(key) if hasattr(saved.weight, "state_dict") else {key: saved.weight}
        originals |= {name.removeprefix(PREFIX): piece for name, piece in pieces.items()}
    for key, weight in network.state_dict().items():
        original = originals[key] if key in originals else weight
        found = _parameter(network, key) if original.is_meta else original  # GGUF loaders give placeholders
        if found is not None:
            yield key, found


def _parameter(network: torch.nn.Module, key: str) -> Tensor | None:
    *path, name = key.split(".")
    try:
        return getattr(network.get_submodule(".".join(path)), name).data.as_subclass(Tensor)
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
    if isinstance(value, ModuleType | type | BuiltinFunctionType):
        sha.update(f"{getattr(value, '__module__', '')} {value.__name__}".encode())
        return
    if not depth:
        raise TypeError("too deep")
    for part in _parts(value):
        _hash(sha, part, depth - 1, seen | {id(value)})


def _parts(value: object) -> list:
    """What a container, an adapter or a function consists of, in order."""
    if isinstance(value, list | tuple):
        return [len(value), *value]
    if isinstance(value, dict):
        return [part for item in sorted(value.items()) for part in item]
    if isinstance(value, functools.partial):
        return ["partial", value.func, *value.args, value.keywords]
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        return [value.__qualname__, value.__code__, cells, value.__defaults__, value.__kwdefaults__, _globals(value)]
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
            value = f"{value.__module__}.{value.__qualname__}"
        used += [name, value]
    return used


def _names(code: CodeType) -> list[str]:
    nested = [name for const in code.co_consts if isinstance(const, CodeType) for name in _names(const)]
    return sorted({*code.co_names, *nested})
