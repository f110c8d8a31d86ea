"""Names that a user chose, as paths in ComfyUI's folders; one that leaves its folder is refused."""

from pathlib import Path

import folder_paths

from ..longlive.errors import SessionError, TuningError


def session_path(name: str) -> Path:
    """Where the session `name` lies, in ComfyUI's output folder. Raises SessionError for a name that leaves it."""
    folder = output_folder()
    path = inside(folder, name, ".safetensors")
    if path is None:
        raise SessionError(
            f"{name!r} is no name for a session, which is kept in {folder}; use a plain name such as my_film"
        )
    return path


def tuning_folder(name: str) -> Path:
    """Where the tuning `name` is kept, in ComfyUI's output folder. Raises TuningError for a name that leaves it."""
    folder = output_folder() / "tuning"
    path = inside(folder, name)
    if path is None:
        raise TuningError(f"{name!r} is no name for a tuning, which is kept in {folder}; use a plain name: my_style")
    return path


def lora_path(name: str) -> Path:
    """Where the adapter `name` belongs, in the first of ComfyUI's folders for LoRAs."""
    folder = loras_folder()
    path = inside(folder, name, ".safetensors")
    if path is None:
        raise TuningError(f"{name!r} is no name for a LoRA in {folder}; use a plain name such as my_style")
    return path


def loras_folder() -> Path:
    return Path(folder_paths.get_folder_paths("loras")[0]).resolve()


def output_folder() -> Path:
    return (Path(folder_paths.get_output_directory()) / "longlive").resolve()


def inside(folder: Path, name: str, suffix: str = "") -> Path | None:
    """The path of a name a user chose; None for one that leaves the folder, is hidden, or is no name."""
    path = (folder / f"{name.strip()}{suffix}").resolve() if name.isprintable() else folder
    return path if name.strip() and folder in path.parents and not path.name.startswith(".") else None
