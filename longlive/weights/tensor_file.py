"""One file of tensors: `.safetensors` or `.pt` read without running any code, `.safetensors` written whole.

Anyone may have written the file: nothing in it makes the reader wait, or take more memory than the file has bytes.
"""

import contextlib
import io
import itertools
import pickletools  # nosec B403 # it takes pickles apart and runs nothing
import re
import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import SHOWN_NAME, WeightsError, list_names, shorten
from ..files import atomic_write, check_regular, open_regular

UNPICKLING_ERROR = torch.serialization.pickle.UnpicklingError  # pyright: ignore[reportPrivateImportUsage]
ZIP, PICKLE = b"PK\x03\x04", b"\x80"  # torch.save since 1.6, and before
IMPOSTORS = (  # files often found in the place of weights: first bytes, what it is, the cure
    (b"GGUF", "a GGUF file", "load it with a GGUF loader node and give its MODEL, or use a .safetensors or .pt file"),
    (b"version https://git-lfs", "a Git LFS pointer instead of the weights", "run `git lfs pull`"),
    (b"<", "a web page instead of the weights", "download the file itself"),
)
REFUSED_GLOBAL = re.compile(r"GLOBAL (\S+)")
ENCRYPTED = 1  # a flag of a zip's record
MAX_HEADER = 32 << 20  # bytes of a safetensors header; the one of 14B has 100 kB
MAX_TUPLES = 40_000  # of a pickle, four per tensor; Python's stack overflows when it hashes a few times as many, nested
MAX_PICKLE = 64 << 20  # bytes of a pickle; the one of a training checkpoint has 1 MB
PICKLES = 4  # that a file older than torch 1.6 has before its tensors


def read_tensor_file(path: Path) -> tuple[dict, dict[str, str]]:
    """Read the content and the metadata of one file. Its first bytes tell the format, not its suffix."""
    if not path.exists():
        raise WeightsError(f"{path} does not exist; give a .safetensors or .pt file, or a folder with config.json")
    with open_regular(path) as file:
        head = file.read(64)
    if not head:
        raise WeightsError(f"{path.name} is empty; download it again")
    for signature, what, cure in IMPOSTORS:
        if head.lstrip().startswith(signature):
            raise WeightsError(f"{path.name} is {what}; {cure}")
    if head[8:9] == b"{":
        return read_safetensors(path, header_bytes=int.from_bytes(head[:8], "little"))
    if head.startswith((ZIP, PICKLE)):
        return read_torch(path, zipped=head.startswith(ZIP)), {}
    raise WeightsError(f"{path.name} holds neither weights nor a session; expected .safetensors or .pt")


def read_safetensors(path: Path, *, header_bytes: int) -> tuple[dict[str, Tensor], dict[str, str]]:
    if MAX_HEADER < header_bytes < path.stat().st_size:
        raise WeightsError(
            f"{path.name} has a header of {header_bytes:,} bytes, expected at most {MAX_HEADER:,}; download it again"
        )
    try:
        return read_tensors(path)
    except (SafetensorError, RuntimeError) as error:
        raise WeightsError(f"{path.name} is truncated or damaged ({shorten(error)}); download it again") from error


def read_metadata(path: Path) -> dict[str, str]:
    """Read the metadata of a safetensors file. Raises OSError or SafetensorError for anything else. Never waits."""
    check_regular(path)
    with safe_open(path, "pt") as file:
        return file.metadata() or {}


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors and the metadata of a safetensors file, opened once: it may be replaced between two openings.

    Raises OSError, SafetensorError or RuntimeError for anything else. Never waits.
    """
    check_regular(path)
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}


def read_torch(path: Path, *, zipped: bool) -> dict:
    """Read a `.pt` file with the unpickler for tensors only; refuse anything that would run code."""
    check_regular(path)
    if zipped:
        refuse_compressed(path)
    refuse_deep(path, zipped=zipped)
    try:
        state = torch.load(str(path), map_location="cpu", weights_only=True, mmap=zipped)
    except UNPICKLING_ERROR as error:
        refused = REFUSED_GLOBAL.search(str(error))
        what = f" ({shorten(refused[1], SHOWN_NAME)})" if refused else ""
        raise WeightsError(
            f"{path.name} is a pickle of more than tensors{what}, so it was refused and nothing in it was run; "
            f"use a file that holds tensors only, best a .safetensors"
        ) from error
    except OSError:
        raise
    except MemoryError as error:
        raise WeightsError(f"{path.name} asks for more memory than there is; use a smaller file") from error
    except Exception as error:  # a damaged pickle may raise any error
        reason = shorten(str(error).partition("\n")[0] or type(error).__name__)
        raise WeightsError(f"{path.name} is damaged or not a torch file ({reason}); download it again") from error
    if not isinstance(state, dict):
        raise WeightsError(f"{path.name} holds a {type(state).__name__}; expected tensors by name, a state dict")
    return copy_entries(state)


def refuse_compressed(path: Path) -> None:
    """Raise WeightsError unless a zip is as torch.save writes it: each record once, neither compressed nor encrypted.

    Torch maps the records into memory as they are, and would take compressed bytes for numbers.
    """
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            records = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:  # a zip ends with its directory
        raise WeightsError(f"{path.name} is truncated or not a whole archive; download it again") from error
    packed = [
        record.filename
        for record in records
        if record.compress_type != zipfile.ZIP_STORED
        or record.flag_bits & ENCRYPTED
        or record.file_size != record.compress_size
    ]
    if packed:
        raise WeightsError(
            f"{path.name} was compressed or encrypted after it was saved ({list_names(packed, 1)}); "
            f"use the file as torch.save writes it"
        )
    is_whole = sum(record.file_size for record in records) <= path.stat().st_size
    if not is_whole or len({record.filename for record in records}) < len(records):
        raise WeightsError(f"{path.name} holds records twice or within each other; download it again")


def refuse_deep(path: Path, *, zipped: bool) -> None:
    """Raise WeightsError for more tuples than a checkpoint has: Python crashes when it hashes deeply nested ones.

    Reads the opcodes of the pickle and executes none.
    """
    try:
        with open_regular(path) as file:
            pickled = read_pickles(zipfile.ZipFile(file)) if zipped else [file.read(MAX_PICKLE)]
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        raise WeightsError(f"{path.name} is truncated or damaged ({shorten(error)}); download it again") from error
    for stream in map(io.BytesIO, pickled):
        tuples = 0
        with contextlib.suppress(Exception):  # torch refuses damaged pickles later
            for opcode, _, _ in itertools.chain.from_iterable(pickletools.genops(stream) for _ in range(PICKLES)):
                tuples += opcode.name.startswith("TUPLE")
                if tuples > MAX_TUPLES:
                    break
        if tuples > MAX_TUPLES or len(stream.getbuffer()) > MAX_PICKLE:
            raise WeightsError(
                f"{path.name} holds a pickle of more than {MAX_TUPLES:,} tuples or {MAX_PICKLE:,} bytes; "
                f"use a file that holds one model"
            )


def read_pickles(archive: zipfile.ZipFile) -> list[bytes]:
    return [archive.read(record) for record in archive.infolist() if record.filename.endswith(".pkl")]


def copy_entries(mapping: dict) -> dict:
    """Copy a mapping without attributes that a pickle may have set on it, such as another `items`."""
    return dict(dict.items(mapping))


def write_tensor_file(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file; `path` then holds the old file or the whole new one, never a part.

    Raises OSError or SafetensorError if the disk refuses; no partial file stays then.
    """
    with atomic_write(path) as part:
        save_file(tensors, part, metadata)
