"""A weights file or folder: its tensors, brought to their released names.

Knows layouts and prefixes. `tensor_file.py` opens a file, `identify.py` says what the tensors are, `load.py` whether
they fit.
"""

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..errors import WeightsError, list_names, shorten
from ..files import read_text
from .tensor_file import copy_entries, read_tensor_file
from .trained_rollout import is_used_averaged
from .weights_folder import find_files, parse_object

EMA = "generator_ema"
PARTS = ("generator", EMA, "generator_lora", "model", "state_dict")  # of a training checkpoint, the preferred one first
WRAPPERS = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.")  # inserted anywhere in a name
PREFIXES = ("base_model.model.", "model.diffusion_model.", "diffusion_model.", "model.", "module.")
MAX_TENSORS, MAX_NAME = 100_000, 500  # of a file; characters
MAX_NESTING = 4  # levels of parts within parts of a training checkpoint
MAX_SHARING = 4  # bytes of tensors per byte of the file: tensors may share bytes, as tied weights do (2)


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsFile:
    """The tensors of one file or folder under released names, and how they were found."""

    path: Path
    tensors: dict[str, Tensor]
    layout: str  # the part taken from a training checkpoint, or "bare"
    parts: tuple[str, ...]  # all top-level entries of a training checkpoint, none if bare
    prefix: str  # what was stripped from the first name
    metadata: dict[str, str]  # of a safetensors header
    config: dict  # of a folder's JSON, or the metadata's `geometry`: what the file states of the network

    @property
    def name(self) -> str:
        return self.path.name

    def stating(self, *, num_heads: int | None = None, text_len: int | None = None) -> "WeightsFile":
        """Return the file with these sizes in place of those it states; None leaves a size as it is."""
        sizes = {"num_heads": num_heads, "text_len": text_len}
        return replace(self, config=self.config | {name: size for name, size in sizes.items() if size is not None})


def read_weights_file(path: str | Path, *, ema: bool | None = None) -> WeightsFile:
    """Open a .safetensors or .pt file, or a folder with config.json and safetensors, memory-mapped where possible.

    Of a training checkpoint, use the `generator`, as the reference does; use the `generator_ema` if `ema` is true, or
    if `ema` is None and there is nothing else or the file is one of Rolling Forcing (`is_used_averaged`). Raises
    WeightsError for a file without weights.
    """
    path = Path(os.path.expanduser(path))  # Path.expanduser raises for an unknown user
    try:
        if path.is_dir():
            described_by, *files = find_files(path)
            state, metadata = read_shards(files)
            config = parse_object(read_text(described_by), str(described_by))
        else:
            files = [path]
            state, metadata = read_tensor_file(path)
            config = parse_object(metadata.get("geometry"), f"the metadata `geometry` of {path.name}")
        num_bytes = sum(file.stat().st_size for file in files)
    except OSError as error:
        raise WeightsError(
            f"{path} cannot be read ({shorten(error.strerror or error)}); check the path and the disk"
        ) from error
    layout, tensors = choose_part(state, ema=ema, source=path.name)
    refuse_expanded(tensors, num_bytes, path.name)
    first = next(iter(tensors))
    return WeightsFile(
        path=path,
        tensors=normalise_names(tensors, source=path.name),
        layout=layout,
        parts=() if layout == "bare" else tuple(name for name in state if isinstance(name, str)),
        prefix=first.removesuffix(to_released_name(first)),
        metadata=metadata,
        config=config,
    )


def read_shards(files: list[Path]) -> tuple[dict, dict[str, str]]:
    """Read files that together hold one model; return all tensors and the metadata of the last file.

    Raises WeightsError for a tensor that two files hold.
    """
    state, metadata = {}, {}
    for file in files:
        tensors, metadata = read_tensor_file(file)
        if twice := sorted(state.keys() & tensors.keys()):
            raise WeightsError(f"{file.name} holds {list_names(twice)} once more; download the folder again")
        state |= tensors
    return state, metadata


def choose_part(
    state: dict, *, ema: bool | None = None, source: str = "the file", depth: int = 0
) -> tuple[str, dict[str, Tensor]]:
    """Choose the part of a loaded state dict to use; return its layout and its tensors."""
    found = [part for part in PARTS if isinstance(state.get(part), dict)]
    if ema and EMA not in found:
        raise WeightsError(f"{source} has no {EMA}, but {list_names(state)}; leave `ema` off")
    if ema is False and found == [EMA]:
        raise WeightsError(f"{source} has no generator, but only {EMA}; turn `ema` on")
    is_averaged = ema or (ema is None and EMA in found and is_used_averaged(source))
    layout = EMA if is_averaged else next(iter(found), "bare")
    part = copy_entries(state[layout]) if found else state
    nested = layout in ("model", "state_dict") and any(isinstance(part.get(inner), dict) for inner in PARTS)
    if nested and depth < MAX_NESTING:
        return choose_part(part, ema=ema, source=source, depth=depth + 1)
    tensors = {name: value for name, value in part.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if not any(Tensor.dim(value) for value in tensors.values()):
        raise WeightsError(
            f"{source} holds {list_names(part)}; expected tensors by name, or one of {', '.join(PARTS)}; "
            f"use a checkpoint saved with its generator"
        )
    return layout, {name: strip_attributes(value, name, source) for name, value in tensors.items()}


def strip_attributes(tensor: Tensor, name: str, source: str) -> Tensor:
    """Detach a tensor from attributes that a pickle may have set on it. Raises WeightsError unless it is dense."""
    tensor = Tensor.detach(tensor)
    is_array = tensor.layout is torch.strided and tensor.device.type != "meta" and not tensor.is_quantized
    if not is_array or tensor.is_conj() or tensor.is_neg():
        raise WeightsError(f"{source} holds {list_names([name])} as a sparse, quantised or empty form; save it dense")
    return tensor


def refuse_expanded(tensors: Mapping[str, Tensor], num_bytes: int, source: str) -> None:
    """Raise WeightsError for tensors that together take far more than the `num_bytes` of their files."""
    claimed = sum(tensor.numel() * tensor.itemsize for tensor in tensors.values())
    if claimed > MAX_SHARING * num_bytes:
        raise WeightsError(
            f"{source} has {num_bytes:,} bytes, but its tensors would take {claimed:,}; save them as they are, "
            f"not expanded"
        )


def normalise_names(tensors: Mapping[str, Tensor], *, source: str = "the file") -> dict[str, Tensor]:
    """Give tensors their released names (`blocks.0.self_attn.q.weight`)."""
    if len(tensors) > MAX_TENSORS or any(len(name) > MAX_NAME for name in tensors):
        raise WeightsError(
            f"{source} has {len(tensors):,} tensors and names of up to {max(map(len, tensors)):,} characters; "
            f"expected at most {MAX_TENSORS:,} and {MAX_NAME}; use a file of one model"
        )
    renamed = {to_released_name(name): tensor for name, tensor in tensors.items()}
    if len(renamed) < len(tensors):
        counts = Counter(map(to_released_name, tensors))
        twice = sorted(name for name, count in counts.items() if count > 1)
        raise WeightsError(f"{source} has two tensors for {list_names(twice)}; save one model in one file")
    return renamed


def to_released_name(name: str) -> str:
    """Remove what training wrappers, adapters and hosts add to a tensor's name."""
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    while prefix := next((prefix for prefix in PREFIXES if name.startswith(prefix)), ""):
        name = name.removeprefix(prefix)
    return name
