"""What a MODEL is, as a hash: its weights, what is patched onto them, and the attention it computes with.

Two MODELs of one identity make the same video. What cannot be looked into is `opaque`: then nothing made with it is
stored, for it would be found again by a MODEL that is not the same.
"""

import functools
import hashlib
from collections.abc import Iterator
from types import FunctionType
from weakref import WeakKeyDictionary

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..longlive.digest import digest_of_tensors

PREFIX = "diffusion_model."
PLAIN = (str, int, float, bool, bytes, type(None), torch.dtype)
DEPTH = 8  # of functions in functions; deeper than any known patch

_digests: WeakKeyDictionary[torch.nn.Module, str] = WeakKeyDictionary()


def model_digest(patcher: ModelPatcher) -> str:
    """The identity of a MODEL: every byte of its weights, hashed once, and of the patches on them.

    An opaque MODEL has an identity of its own, which no other ever has.
    """
    network = patcher.model.diffusion_model
    if network not in _digests:
        _digests[network] = digest_of_tensors(dict(_weights(patcher, network)))
    if not patcher.patches and not opaque(patcher):
        return _digests[network]
    sha = hashlib.sha256(_digests[network].encode())
    for key in sorted(patcher.patches):
        sha.update(key.encode())
        _hash_patch(sha, patcher.patches[key])
    if opaque(patcher):
        sha.update(str(patcher.patches_uuid).encode())
    return sha.hexdigest()


def opaque(patcher: ModelPatcher) -> list[str]:
    """What the MODEL carries that changes its results in a way no hash can tell."""
    objects = [name for name in patcher.object_patches if name.startswith(PREFIX)]
    found = {
        "injections (a bypass LoRA)": patcher.injections,
        "functions on weights": patcher.weight_wrapper_patches,
        "patched objects": objects,
        "an attention override": attention_name(patcher) is None,
    }
    return [name for name, carried in found.items() if carried]


def attention_name(patcher: ModelPatcher) -> str | None:
    """A name for the MODEL's attention override, equal for equal ones; None where it cannot be looked into."""
    override = patcher.model_options.get("transformer_options", {}).get("optimized_attention_override")
    sha = hashlib.sha256()
    try:
        _hash_function(sha, override, DEPTH)
    except (TypeError, ValueError):  # something opaque, or a cell that is still empty
        return None
    return sha.hexdigest()[:16] if override else "plain"


def _weights(patcher: ModelPatcher, network: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The weights as they were loaded, also while a LoRA lies patched on them, also where a loader hides them."""
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


def _hash_patch(sha, patch) -> None:
    """Everything a weight patch consists of: tensors in full, strengths, adapters by what they hold."""
    if isinstance(patch, Tensor):
        sha.update(digest_of_tensors({"": patch}).encode())
    elif isinstance(patch, list | tuple):
        for part in patch:
            _hash_patch(sha, part)
    elif hasattr(patch, "weights"):
        sha.update(type(patch).__qualname__.encode())
        _hash_patch(sha, patch.weights)
    else:
        sha.update(repr(getattr(patch, "__qualname__", patch)).encode())


def _hash_function(sha, value: object, depth: int) -> None:
    """A function by its code and all it holds. Raises TypeError at what cannot be looked into."""
    if isinstance(value, PLAIN):
        sha.update(repr(value).encode())
        return
    if isinstance(value, FunctionType) and depth:
        sha.update(f"{value.__module__}.{value.__qualname__}".encode() + value.__code__.co_code)
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        parts = [*cells, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
    elif isinstance(value, functools.partial) and depth:
        parts = [value.func, *value.args, *(part for item in sorted(value.keywords.items()) for part in item)]
    elif isinstance(value, list | tuple) and depth:
        parts = list(value)
    else:
        raise TypeError(type(value))
    for part in parts:
        _hash_function(sha, part, depth - 1)
