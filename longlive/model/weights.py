"""A file of weights: opened without running any code, its names brought to the released ones.

Knows containers, layouts and prefixes; what the tensors mean is `kinds.py`, whether they fit is `checkpoint.py`.
"""

import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import CheckpointError

EMA = "generator_ema"
PARTS = ("generator", EMA, "generator_lora", "model", "state_dict")  # of a training checkpoint, as preferred
WRAPPERS = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.")  # inserted anywhere in a name
PREFIXES = ("base_model.model.", "model.diffusion_model.", "diffusion_model.", "model.", "module.")
FOLDERS = (  # the file that describes a folder, and its weights
    ("config.json", "diffusion_pytorch_model*.safetensors"),
    ("adapter_config.json", "adapter_model*.safetensors"),
)
SUFFIXES = {".safetensors", ".pt", ".pth", ".ckpt", ".bin"}
UNPICKLING_ERROR = torch.serialization.pickle.UnpicklingError  # pyright: ignore[reportPrivateImportUsage]
ZIP, PICKLE = b"PK\x03\x04", b"\x80"  # torch.save since 1.6, and before
IMPOSTORS = (  # what often lies where weights should be: its first bytes, what it is, the cure
    (b"GGUF", "a GGUF file", "load it with a GGUF loader node and give its MODEL, or use a .safetensors or .pt file"),
    (b"version https://git-lfs", "a Git LFS pointer instead of the weights", "run `git lfs pull`"),
    (b"<", "a web page instead of the weights", "download the file itself"),
)
REFUSED_GLOBAL = re.compile(r"GLOBAL (\S+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """The tensors of one file or folder under released names, and how they were found."""

    path: Path
    tensors: dict[str, Tensor]
    layout: str  # the part taken from a training checkpoint, or "bare"
    parts: tuple[str, ...]  # all top-level entries of a training checkpoint, none if bare
    prefix: str  # what was stripped from the first name
    metadata: dict[str, str]  # of a safetensors header
    config: dict  # of a folder's JSON, or the metadata's `geometry`

    @property
    def name(self) -> str:
        return self.path.name


def read(path: str | Path, *, ema: bool | None = None) -> Weights:
    """Open a .safetensors or .pt file, or a folder with config.json and safetensors; mapped where possible.

    A training checkpoint gives its `generator`, as the reference does; its `generator_ema` if `ema` is true, or if
    `ema` is None and there is nothing else.
    """
    path = Path(path).expanduser()
    try:
        if path.is_dir():
            state, metadata, config = read_folder(path)
        else:
            state, metadata = read_file(path)
            config = stated(metadata.get("geometry"), f"the metadata `geometry` of {path.name}")
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read ({error.strerror or error}); check the path and the disk"
        ) from error
    layout, tensors = chosen_part(state, ema=ema, source=path.name)
    first = next(iter(tensors))
    return Weights(
        path=path,
        tensors=normalised(tensors, source=path.name),
        layout=layout,
        parts=() if layout == "bare" else tuple(map(str, state)),
        prefix=first.removesuffix(released_name(first)),
        metadata=metadata,
        config=config,
    )


def chosen_part(state: Mapping, *, ema: bool | None = None, source: str = "the file") -> tuple[str, dict[str, Tensor]]:
    """The layout of a loaded state dict and the tensors of the part to use."""
    found = [part for part in PARTS if isinstance(state.get(part), Mapping)]
    if ema and EMA not in found:
        raise CheckpointError(f"{source} has no {EMA}, but {listed(state)}; leave `ema` off")
    if ema is False and found == [EMA]:
        raise CheckpointError(f"{source} has no generator, but only {EMA}; turn `ema` on")
    layout = EMA if ema else next(iter(found), "bare")
    part = state[layout] if found else state
    if layout in ("model", "state_dict") and any(isinstance(part.get(inner), Mapping) for inner in PARTS):
        return chosen_part(part, ema=ema, source=source)
    tensors = {str(name): value for name, value in part.items() if isinstance(value, Tensor)}
    if not any(value.dim() for value in tensors.values()):
        raise CheckpointError(
            f"{source} holds {listed(part)}; expected tensors by name, or one of {', '.join(PARTS)}; "
            f"use a checkpoint saved with its generator"
        )
    return layout, tensors


def normalised(tensors: Mapping[str, Tensor], *, source: str = "the file") -> dict[str, Tensor]:
    """The same tensors under released names (`blocks.0.self_attn.q.weight`)."""
    renamed = {released_name(name): tensor for name, tensor in tensors.items()}
    if len(renamed) < len(tensors):
        names = [released_name(name) for name in tensors]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise CheckpointError(f"{source} has two tensors for {listed(twice)}; save one model in one file")
    return renamed


def released_name(name: str) -> str:
    """One name without the marks of training wrappers, adapters and hosts."""
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    while prefix := next((prefix for prefix in PREFIXES if name.startswith(prefix)), ""):
        name = name.removeprefix(prefix)
    return name


def listed(names, limit: int = 4) -> str:
    """The first few names and how many more there are."""
    names = [str(name) for name in names]
    if not names:
        return "nothing"
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def read_folder(path: Path) -> tuple[dict[str, Tensor], dict[str, str], dict]:
    """A released folder: a JSON that describes it beside one safetensors file or its shards."""
    described_by, *files = files_of(path)
    state, metadata = {}, {}
    for file in files:
        tensors, metadata = read_file(file)
        state |= tensors
    return state, metadata, stated(text_of(described_by), str(described_by))


def files_of(path: Path) -> list[Path]:
    """The files of a folder that are read: the JSON that describes it, then its weights."""
    for described_by, pattern in FOLDERS:
        if (path / described_by).is_file():
            return [path / described_by, *shards(path, pattern)]
    files = sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES)
    found = listed(file.relative_to(path).as_posix() for file in files)
    raise CheckpointError(
        f"{path} is a folder without config.json (weights found in it: {found}); give one file, "
        f"or a folder that holds config.json and diffusion_pytorch_model*.safetensors"
    )


def shards(path: Path, pattern: str) -> list[Path]:
    """The files of a folder that together hold its weights, from its index if there is one."""
    index = next(path.glob(f"{pattern}.index.json"), None)
    if index:
        names = stated(text_of(index), str(index)).get("weight_map", {}).values()
        files = [path / name for name in sorted(set(names))]
    else:
        files = sorted(path.glob(pattern)) or sorted(path.glob("*.safetensors"))
    missing = [file.name for file in files if not file.is_file()]
    if missing or not files:
        raise CheckpointError(f"{path} lacks {listed(missing or [pattern])}; download the folder again")
    return files


def read_file(path: Path) -> tuple[Mapping, dict[str, str]]:
    """The raw content and the metadata of one file, its format told by its first bytes and not by its suffix."""
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; give a .safetensors or .pt file, or a folder with config.json")
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        raise CheckpointError(f"{path.name} is empty; download it again")
    for signature, what, cure in IMPOSTORS:
        if head.lstrip().startswith(signature):
            raise CheckpointError(f"{path.name} is {what}; {cure}")
    if head[8:9] == b"{":
        return read_safetensors(path)
    if head.startswith((ZIP, PICKLE)):
        return read_torch(path, zipped=head.startswith(ZIP)), {}
    raise CheckpointError(f"{path.name} holds neither weights nor a session; expected .safetensors or .pt")


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    except SafetensorError as error:
        raise CheckpointError(f"{path.name} is truncated or damaged ({error}); download it again") from error


def read_torch(path: Path, *, zipped: bool) -> Mapping:
    """A `.pt` by the unpickler that knows tensors only; anything that would run code is refused."""
    if zipped and not zipfile.is_zipfile(path):  # the directory of a zip is its end
        raise CheckpointError(f"{path.name} is truncated; download it again")
    try:
        state = torch.load(str(path), map_location="cpu", weights_only=True, mmap=zipped)
    except UNPICKLING_ERROR as error:
        refused = REFUSED_GLOBAL.search(str(error))
        what = f" ({refused[1]})" if refused else ""
        raise CheckpointError(
            f"{path.name} is a pickle of more than tensors{what}, so it was refused and nothing in it was run; "
            f"use a file that holds tensors only, best a .safetensors"
        ) from error
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a damaged pickle ends in whatever its bytes happen to spell
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise CheckpointError(f"{path.name} is damaged or no torch file ({reason}); download it again") from error
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{path.name} holds a {type(state).__name__}; expected tensors by name, a state dict")
    return state


def stated(text: str | None, where: str) -> dict:
    """A JSON object, empty for no text."""
    try:
        value = json.loads(text or "{}")
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{where} is not JSON ({error}); download it again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{where} holds a {type(value).__name__}; expected a JSON object")
    return value


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")
