"""Names that a user chose, as paths in ComfyUI's folders; one that leaves its folder is refused."""

import reprlib
from pathlib import Path

import folder_paths

from ..longlive.errors import DataError, SessionError, TuningError, VideoError
from ..longlive.files import find_inside, is_plain_path


def session_path(name: str) -> Path:
    """Where the session `name` lies, in ComfyUI's output folder. Raises SessionError for a name that leaves it."""
    folder = output_folder()
    path = find_inside(folder, name.strip(), ".safetensors")
    if path is None:
        raise SessionError(
            f"{reprlib.repr(name)} is no name for a session, which is kept in {folder}; "
            f"use a plain name such as my_film"
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
        raise TuningError(f"{reprlib.repr(name)} is no name for a LoRA in {folder}; use a plain name such as my_style")
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


def film_path(prefix: str, width: int, height: int) -> tuple[Path, str]:
    """Where the next film named so is written, and the folder of that in ComfyUI's output folder. Raises VideoError.

    ComfyUI makes folders, expands %width% and its like, and counts. It follows links within its output folder.
    """
    output = folder_paths.get_output_directory()
    if not is_plain_path(prefix.strip()):
        raise VideoError(
            f"{reprlib.repr(prefix)} is no name for a film in {output}; use folders and a name such as video/LongLive"
        )
    try:
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(prefix.strip(), output, width, height)
    except OSError as error:
        raise VideoError(f"there is no place for {prefix} in {output}: {error}; choose another name") from error
    return Path(folder) / f"{name}_{counter:05}_.mp4", subfolder


def loras_folder() -> Path:
    return Path(folder_paths.get_folder_paths("loras")[0]).resolve()


def temporary_folder() -> Path:
    """ComfyUI's folder for what need not outlive it."""
    folder = Path(folder_paths.get_temp_directory())
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def output_folder() -> Path:
    return (Path(folder_paths.get_output_directory()) / "longlive").resolve()
