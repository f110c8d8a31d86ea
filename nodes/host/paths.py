"""Names that a user chose, as paths in ComfyUI's folders. A name that leaves its folder is refused."""

import reprlib
from pathlib import Path

import folder_paths

from ...longlive.errors import DataError, SessionError, TuningError, VideoError
from ...longlive.files import find_inside, is_plain_path


def find_session_path(name: str) -> Path:
    """Find the path of the session `name`, in ComfyUI's output folder. Raises SessionError if the name leaves it."""
    folder = find_longlive_folder()
    path = find_inside(folder, name.strip(), ".safetensors")
    if path is None:
        raise SessionError(
            f"{reprlib.repr(name)} is not a name for a session in {folder}; use a plain name such as my_film"
        )
    return path


def find_tuning_folder(name: str) -> Path:
    """Find the folder of the tuning `name`, in ComfyUI's output folder. Raises TuningError if the name leaves it."""
    folder = find_longlive_folder() / "tuning"
    path = find_inside(folder, name.strip())
    if path is None:
        raise TuningError(
            f"{reprlib.repr(name)} is not a name for a tuning in {folder}; use a plain name such as my_style"
        )
    return path


def find_lora_path(name: str) -> Path:
    """Find the path of the LoRA `name`, in ComfyUI's first LoRA folder. Raises TuningError if the name leaves it."""
    folder = find_loras_folder()
    path = find_inside(folder, name.strip(), ".safetensors")
    if path is None:
        raise TuningError(
            f"{reprlib.repr(name)} is not a name for a LoRA in {folder}; use a plain name such as my_style"
        )
    return path


def find_pairs_path(name: str) -> Path:
    """Find the path of a file of prompt pairs, in ComfyUI's input folder. Raises DataError if the name leaves it."""
    folder = Path(folder_paths.get_input_directory())
    path = find_inside(folder, name.strip())
    if path is None:
        raise DataError(
            f"{reprlib.repr(name)} is not a name in {folder}; put the file there and give its name, such as pairs.txt"
        )
    return path


def choose_video_path(prefix: str, width: int, height: int) -> tuple[Path, str]:
    """Choose the path of the next video with a prefix; also return its folder, relative to ComfyUI's output folder.

    ComfyUI creates the folders, fills in %width% and the like, and numbers the file. It follows links within its output
    folder. Raises VideoError.
    """
    output = folder_paths.get_output_directory()
    if not is_plain_path(prefix.strip()):
        raise VideoError(
            f"{reprlib.repr(prefix)} is not a name for a video in {output}; use a name such as video/LongLive"
        )
    try:
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(prefix.strip(), output, width, height)
    except OSError as error:
        raise VideoError(f"{prefix} cannot be created in {output}: {error}; choose another name") from error
    return Path(folder) / f"{name}_{counter:05}_.mp4", subfolder


def find_loras_folder() -> Path:
    return Path(folder_paths.get_folder_paths("loras")[0]).resolve()


def find_temporary_folder() -> Path:
    """Find ComfyUI's folder for temporary files."""
    folder = Path(folder_paths.get_temp_directory())
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def find_longlive_folder() -> Path:
    return (find_output_folder() / "longlive").resolve()


def find_output_folder() -> Path:
    return Path(folder_paths.get_output_directory()).resolve()


def fingerprint_file(path: Path) -> str:
    """Return a text that changes when the file is written again. Raises OSError if there is no file."""
    stat = path.stat()
    return f"{stat.st_mtime_ns} {stat.st_size}"
