"""Names that a user chose, as paths in ComfyUI's folders; one that leaves its folder is refused."""

import reprlib
from pathlib import Path

import folder_paths

from ..longlive.errors import DataError, SessionError, TuningError
from ..longlive.files import find_inside


def session_path(name: str) -> Path:
    """Where the session `name` lies, in ComfyUI's output folder. Raises SessionError for a name that leaves it."""
    folder = output_folder()
    path = find_inside(folder, name.strip(), ".safetensors")
    if path is None:
        raise SessionError(
            f"{reprlib.repr(name)} is no name for a session, which is kept in {folder}; use a plain name such as my_film"
        )
    return path


def tuning_folder(name: str) -> Path:
    """Where the tuning `name` is kept, in ComfyUI's output folder. Raises TuningError for a name that leaves it."""
    folder = output_folder() / "tuning"
    path = find_inside(folder, name.strip())
    if path is None:
        raise TuningError(
            f"{reprlib.repr(name)} is no name for a tuning, which is kept in {folder}; use a plain name: my_style"
        )
    return path


def lora_path(name: str) -> Path:
    """Where the adapter `name` belongs, in the first of ComfyUI's folders for LoRAs."""
    folder = loras_folder()
    path = find_inside(folder, name.strip(), ".safetensors")
    if path is None:
        raise TuningError(
            f"{reprlib.repr(name)} is no name for a LoRA in {folder}; use a plain name such as my_style"
        )
    return path


def pairs_path(name: str) -> Path:
    """Where a file of prompt pairs lies, in ComfyUI's input folder. Raises DataError for a name that leaves it."""
    folder = Path(folder_paths.get_input_directory())
    path = find_inside(folder, name.strip())
    if path is None:
        raise DataError(
            f"{reprlib.repr(name)} is no name in {folder}; put the file of pairs there, and give its name: pairs.txt"
        )
    return path


def loras_folder() -> Path:
    return Path(folder_paths.get_folder_paths("loras")[0]).resolve()


def output_folder() -> Path:
    return (Path(folder_paths.get_output_directory()) / "longlive").resolve()
