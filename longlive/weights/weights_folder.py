"""A folder of weights: the JSON that describes it, and the files that together hold one model."""

import itertools
from pathlib import Path

from ..errors import WeightsError, list_names, shorten
from ..files import is_plain_name, read_text
from ..untrusted import parse_json

FOLDERS = (  # the file that describes a folder, and its weights
    ("config.json", "diffusion_pytorch_model*.safetensors"),
    ("adapter_config.json", "adapter_model*.safetensors"),
)
SUFFIXES = {".safetensors", ".pt", ".pth", ".ckpt", ".bin"}
MAX_LISTED = 10_000  # files of a folder that are searched for weights


def find_files(path: Path) -> list[Path]:
    """List the files of a folder to read: the JSON that describes it, then its weights."""
    for described_by, pattern in FOLDERS:
        if (path / described_by).is_file():
            return [path / described_by, *find_shards(path, pattern)]
    files = sorted(file for file in itertools.islice(path.rglob("*"), MAX_LISTED) if file.suffix in SUFFIXES)
    found = list_names(file.relative_to(path).as_posix() for file in files)
    raise WeightsError(
        f"{path} is a folder without config.json (weights found in it: {found}); give one file, "
        f"or a folder that holds config.json and diffusion_pytorch_model*.safetensors"
    )


def find_shards(path: Path, pattern: str) -> list[Path]:
    """List the files that together hold a folder's weights, by its index if there is one."""
    index = next(path.glob(f"{pattern}.index.json"), None)
    if index:
        files = [path / name for name in read_index(index)]
    else:
        files = sorted(path.glob(pattern)) or sorted(path.glob("*.safetensors"))
    missing = [file.name for file in files if not file.is_file()]
    if missing or not files:
        raise WeightsError(f"{path} lacks {list_names(missing or [pattern])}; download the folder again")
    return files


def read_index(index: Path) -> list[str]:
    """List the files that an index names, all in its own folder."""
    weight_map = parse_object(read_text(index), str(index)).get("weight_map", {})
    names = list(weight_map.values()) if isinstance(weight_map, dict) else [weight_map]
    odd = [name for name in names if not (isinstance(name, str) and is_plain_name(name))]
    if odd:
        raise WeightsError(f"{index} names {shorten(odd[0])!r} as a file beside it; download the folder again")
    return sorted(set(names))


def parse_object(text: str | None, where: str) -> dict:
    """Parse a JSON object; no text gives an empty one. Raises WeightsError, naming `where`."""
    try:
        value = parse_json(text or "{}")
    except ValueError as error:
        raise WeightsError(f"{where} is not JSON ({shorten(error)}); download it again") from error
    if not isinstance(value, dict):
        raise WeightsError(f"{where} holds a {type(value).__name__}; expected a JSON object")
    return value
