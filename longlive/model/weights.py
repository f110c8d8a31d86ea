"""A file of weights: opened without running any code, its names brought to the released ones.

Anyone may have written it: nothing in it makes the reader wait, or take more memory than the file has bytes.
Knows containers, layouts and prefixes; what the tensors mean is `kinds.py`, whether they fit is `checkpoint.py`.
"""

import contextlib
import io
import itertools
import os
import pickletools  # nosec B403 # it takes pickles apart and runs nothing
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import CheckpointError
from ..files import check_regular, is_plain_name, open_regular, read_text
from ..untrusted import brief, parse_json

EMA = "generator_ema"
PARTS = ("generator", EMA, "generator_lora", "model", "state_dict")  # of a training checkpoint, as preferred
WRAPPERS = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.")  # inserted anywhere in a name
PREFIXES = ("base_model.model.", "model.diffusion_model.", "diffusion_model.", "model.", "module.")
FOLDERS = (  # the file that describes a folder, and its weights
    ("config.json", "diffusion_pytorch_model*.safetensors"),
    ("adapter_config.json", "adapter_model*.safetensors"),
)
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2)
SUFFIXES = {".safetensors", ".pt", ".pth", ".ckpt", ".bin"}
UNPICKLING_ERROR = torch.serialization.pickle.UnpicklingError  # pyright: ignore[reportPrivateImportUsage]
ZIP, PICKLE = b"PK\x03\x04", b"\x80"  # torch.save since 1.6, and before
IMPOSTORS = (  # what often lies where weights should be: its first bytes, what it is, the cure
    (b"GGUF", "a GGUF file", "load it with a GGUF loader node and give its MODEL, or use a .safetensors or .pt file"),
    (b"version https://git-lfs", "a Git LFS pointer instead of the weights", "run `git lfs pull`"),
    (b"<", "a web page instead of the weights", "download the file itself"),
)
REFUSED_GLOBAL = re.compile(r"GLOBAL (\S+)")
ENCRYPTED = 1  # a flag of a zip's record
MAX_HEADER = 32 << 20  # bytes of a safetensors header; that of 14B has 100 kB
MAX_TENSORS, MAX_NAME = 100_000, 500  # of a file; characters
MAX_TUPLES = 40_000  # of a pickle, four a tensor; a hash of a few times as many in each other overflows the stack
MAX_PICKLE = 64 << 20  # bytes of a pickle; that of a training checkpoint has 1 MB
PICKLES = 4  # before the tensors of a file of before torch 1.6
MAX_NESTING = 4  # of the parts of a training checkpoint in each other
MAX_SHARING = 4  # how often each byte of a file may be in a tensor, as tied weights are twice
MAX_LISTED = 10_000  # files of a folder that are looked through for weights
SHOWN_NAME = 80  # characters of a name in a message


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
    path = Path(os.path.expanduser(path))  # that of Path raises for a user there is not
    try:
        if path.is_dir():
            described_by, *files = files_of(path)
            state, metadata = read_shards(files)
            config = stated(read_text(described_by), str(described_by))
        else:
            files = [path]
            state, metadata = read_file(path)
            config = stated(metadata.get("geometry"), f"the metadata `geometry` of {path.name}")
        num_bytes = sum(file.stat().st_size for file in files)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read ({brief(error.strerror or error)}); check the path and the disk"
        ) from error
    layout, tensors = chosen_part(state, ema=ema, source=path.name)
    refuse_expanded(tensors, num_bytes, path.name)
    first = next(iter(tensors))
    return Weights(
        path=path,
        tensors=normalised(tensors, source=path.name),
        layout=layout,
        parts=() if layout == "bare" else tuple(name for name in state if isinstance(name, str)),
        prefix=first.removesuffix(released_name(first)),
        metadata=metadata,
        config=config,
    )


def chosen_part(
    state: dict, *, ema: bool | None = None, source: str = "the file", depth: int = 0
) -> tuple[str, dict[str, Tensor]]:
    """The layout of a loaded state dict and the tensors of the part to use."""
    found = [part for part in PARTS if isinstance(state.get(part), dict)]
    if ema and EMA not in found:
        raise CheckpointError(f"{source} has no {EMA}, but {listed(state)}; leave `ema` off")
    if ema is False and found == [EMA]:
        raise CheckpointError(f"{source} has no generator, but only {EMA}; turn `ema` on")
    layout = EMA if ema else next(iter(found), "bare")
    part = entries(state[layout]) if found else state
    nested = layout in ("model", "state_dict") and any(isinstance(part.get(inner), dict) for inner in PARTS)
    if nested and depth < MAX_NESTING:
        return chosen_part(part, ema=ema, source=source, depth=depth + 1)
    tensors = {name: value for name, value in part.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if not any(Tensor.dim(value) for value in tensors.values()):
        raise CheckpointError(
            f"{source} holds {listed(part)}; expected tensors by name, or one of {', '.join(PARTS)}; "
            f"use a checkpoint saved with its generator"
        )
    return layout, {name: plain(value, name, source) for name, value in tensors.items()}


def entries(mapping: dict) -> dict:
    """The same entries without what a pickle may have set on the mapping, such as another `items`."""
    return dict(dict.items(mapping))


def plain(tensor: Tensor, name: str, source: str) -> Tensor:
    """The tensor without what a pickle may have set on it. Raises CheckpointError for one that is no dense array."""
    tensor = Tensor.detach(tensor)
    is_array = tensor.layout is torch.strided and tensor.device.type != "meta" and not tensor.is_quantized
    if not is_array or tensor.is_conj() or tensor.is_neg():
        raise CheckpointError(f"{source} holds {listed([name])} as a sparse, quantised or empty form; save it dense")
    return tensor


def normalised(tensors: Mapping[str, Tensor], *, source: str = "the file") -> dict[str, Tensor]:
    """The same tensors under released names (`blocks.0.self_attn.q.weight`)."""
    if len(tensors) > MAX_TENSORS or any(len(name) > MAX_NAME for name in tensors):
        raise CheckpointError(
            f"{source} has {len(tensors):,} tensors and names of up to {max(map(len, tensors)):,} characters; "
            f"expected at most {MAX_TENSORS:,} and {MAX_NAME}; use a file of one model"
        )
    renamed = {released_name(name): tensor for name, tensor in tensors.items()}
    if len(renamed) < len(tensors):
        counts = Counter(map(released_name, tensors))
        twice = sorted(name for name, count in counts.items() if count > 1)
        raise CheckpointError(f"{source} has two tensors for {listed(twice)}; save one model in one file")
    return renamed


def released_name(name: str) -> str:
    """One name without the marks of training wrappers, adapters and hosts."""
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    while prefix := next((prefix for prefix in PREFIXES if name.startswith(prefix)), ""):
        name = name.removeprefix(prefix)
    return name


def listed(names: Iterable, limit: int = 4) -> str:
    """The first few names, fit for a message, and how many more there are."""
    names = list(names)
    if not names:
        return "nothing"
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    shown = (name if isinstance(name, str | int | float) else type(name).__name__ for name in names[:limit])
    return ", ".join(brief(name, SHOWN_NAME) for name in shown) + more


def read_shards(files: list[Path]) -> tuple[dict, dict[str, str]]:
    """The raw content of files that together hold one model, and the metadata of the last."""
    state, metadata = {}, {}
    for file in files:
        tensors, metadata = read_file(file)
        state |= tensors
    return state, metadata


def files_of(path: Path) -> list[Path]:
    """The files of a folder that are read: the JSON that describes it, then its weights."""
    for described_by, pattern in FOLDERS:
        if (path / described_by).is_file():
            return [path / described_by, *shards(path, pattern)]
    files = sorted(file for file in itertools.islice(path.rglob("*"), MAX_LISTED) if file.suffix in SUFFIXES)
    found = listed(file.relative_to(path).as_posix() for file in files)
    raise CheckpointError(
        f"{path} is a folder without config.json (weights found in it: {found}); give one file, "
        f"or a folder that holds config.json and diffusion_pytorch_model*.safetensors"
    )


def shards(path: Path, pattern: str) -> list[Path]:
    """The files of a folder that together hold its weights, from its index if there is one."""
    index = next(path.glob(f"{pattern}.index.json"), None)
    if index:
        files = [path / name for name in named_in(index)]
    else:
        files = sorted(path.glob(pattern)) or sorted(path.glob("*.safetensors"))
    missing = [file.name for file in files if not file.is_file()]
    if missing or not files:
        raise CheckpointError(f"{path} lacks {listed(missing or [pattern])}; download the folder again")
    return files


def named_in(index: Path) -> list[str]:
    """The files that an index names, all of its own folder."""
    weight_map = stated(read_text(index), str(index)).get("weight_map", {})
    names = list(weight_map.values()) if isinstance(weight_map, dict) else [weight_map]
    odd = [name for name in names if not (isinstance(name, str) and is_plain_name(name))]
    if odd:
        raise CheckpointError(f"{index} names {brief(odd[0])!r} as a file beside it; download the folder again")
    return sorted(set(names))


def read_file(path: Path) -> tuple[dict, dict[str, str]]:
    """The raw content and the metadata of one file, its format told by its first bytes and not by its suffix."""
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; give a .safetensors or .pt file, or a folder with config.json")
    with open_regular(path) as file:
        head = file.read(64)
    if not head:
        raise CheckpointError(f"{path.name} is empty; download it again")
    for signature, what, cure in IMPOSTORS:
        if head.lstrip().startswith(signature):
            raise CheckpointError(f"{path.name} is {what}; {cure}")
    if head[8:9] == b"{":
        return read_safetensors(path, header_bytes=int.from_bytes(head[:8], "little"))
    if head.startswith((ZIP, PICKLE)):
        return read_torch(path, zipped=head.startswith(ZIP)), {}
    raise CheckpointError(f"{path.name} holds neither weights nor a session; expected .safetensors or .pt")


def read_safetensors(path: Path, *, header_bytes: int) -> tuple[dict[str, Tensor], dict[str, str]]:
    if MAX_HEADER < header_bytes < path.stat().st_size:
        raise CheckpointError(
            f"{path.name} has a header of {header_bytes:,} bytes, expected at most {MAX_HEADER:,}; download it again"
        )
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    except (SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"{path.name} is truncated or damaged ({brief(error)}); download it again") from error


def read_torch(path: Path, *, zipped: bool) -> dict:
    """A `.pt` by the unpickler that knows tensors only; anything that would run code is refused."""
    check_regular(path)
    if zipped:
        refuse_packed(path)
    refuse_deep(path, zipped=zipped)
    try:
        state = torch.load(str(path), map_location="cpu", weights_only=True, mmap=zipped)
    except UNPICKLING_ERROR as error:
        refused = REFUSED_GLOBAL.search(str(error))
        what = f" ({brief(refused[1], SHOWN_NAME)})" if refused else ""
        raise CheckpointError(
            f"{path.name} is a pickle of more than tensors{what}, so it was refused and nothing in it was run; "
            f"use a file that holds tensors only, best a .safetensors"
        ) from error
    except OSError:
        raise
    except MemoryError as error:
        raise CheckpointError(f"{path.name} asks for more memory than there is; use a smaller file") from error
    except Exception as error:  # a damaged pickle ends in whatever its bytes happen to spell
        reason = brief(str(error).partition("\n")[0] or type(error).__name__)
        raise CheckpointError(f"{path.name} is damaged or no torch file ({reason}); download it again") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path.name} holds a {type(state).__name__}; expected tensors by name, a state dict")
    return entries(state)


def refuse_packed(path: Path) -> None:
    """Raise CheckpointError unless a zip holds its records as torch.save does: each once, and as plain bytes.

    Torch maps records into memory as they lie, and would take packed ones for numbers.
    """
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            records = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:  # the directory of a zip is its end
        raise CheckpointError(f"{path.name} is truncated or no whole archive; download it again") from error
    packed = [
        record.filename
        for record in records
        if record.compress_type != zipfile.ZIP_STORED
        or record.flag_bits & ENCRYPTED
        or record.file_size != record.compress_size
    ]
    if packed:
        raise CheckpointError(
            f"{path.name} was compressed or encrypted after it was saved ({listed(packed, 1)}); "
            f"use the file as torch.save writes it"
        )
    is_whole = sum(record.file_size for record in records) <= path.stat().st_size
    if not is_whole or len({record.filename for record in records}) < len(records):
        raise CheckpointError(f"{path.name} holds records twice or within each other; download it again")


def refuse_deep(path: Path, *, zipped: bool) -> None:
    """Raise CheckpointError for a pickle with more tuples than a checkpoint has: Python crashes on a hash of deep ones.

    The opcodes are read and not executed.
    """
    try:
        with open_regular(path) as file:
            pickled = pickles_in(zipfile.ZipFile(file)) if zipped else [file.read(MAX_PICKLE)]
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(f"{path.name} is truncated or damaged ({brief(error)}); download it again") from error
    for stream in map(io.BytesIO, pickled):
        tuples = 0
        with contextlib.suppress(Exception):  # what is damaged is for torch to refuse
            for opcode, _, _ in itertools.chain.from_iterable(pickletools.genops(stream) for _ in range(PICKLES)):
                tuples += opcode.name.startswith("TUPLE")
                if tuples > MAX_TUPLES:
                    break
        if tuples > MAX_TUPLES or len(stream.getbuffer()) > MAX_PICKLE:
            raise CheckpointError(
                f"{path.name} holds a pickle of more than {MAX_TUPLES:,} tuples or {MAX_PICKLE:,} bytes; "
                f"use a file that holds one model"
            )


def pickles_in(archive: zipfile.ZipFile) -> list[bytes]:
    return [archive.read(record) for record in archive.infolist() if record.filename.endswith(".pkl")]


def refuse_expanded(tensors: Mapping[str, Tensor], num_bytes: int, source: str) -> None:
    """Raise CheckpointError for tensors that together are much larger than the `num_bytes` they were read from."""
    claimed = sum(tensor.numel() * tensor.itemsize for tensor in tensors.values())
    if claimed > MAX_SHARING * num_bytes:
        raise CheckpointError(
            f"{source} has {num_bytes:,} bytes, but its tensors would take {claimed:,}; save them as they are, "
            f"not expanded"
        )


def stated(text: str | None, where: str) -> dict:
    """A JSON object, empty for no text."""
    try:
        value = parse_json(text or "{}")
    except ValueError as error:
        raise CheckpointError(f"{where} is not JSON ({brief(error)}); download it again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{where} holds a {type(value).__name__}; expected a JSON object")
    return value
