"""Checkpoints of a tuning: a folder for each, with a file for each process. The newest few are kept.

A folder is written under another name and renamed, so a killed tuning leaves only whole checkpoints.
"""

import json
import shutil
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor

from ..digest import hash_content
from ..errors import TuningError, shorten
from ..files import PART
from ..untrusted import parse_json
from ..weights.tensor_file import read_tensors, write_tensor_file
from .accelerator import fail_together
from .config import refuse_other_config
from .optimizer_state import join_states, select_state
from .trainer import Trainer

CONFIG_KEY, DIGEST_KEY = "longlive_tuning", "longlive_digest"  # in the metadata of a checkpoint
FOLDER_NAME, PROCESS_FILES = "checkpoints", "process*.safetensors"


class Checkpoints:
    """The checkpoints of one tuning, in the folder `checkpoints` of its own folder."""

    def __init__(self, trainer: Trainer, folder: Path) -> None:
        self.trainer, self.folder = trainer, folder / FOLDER_NAME
        self.accelerator = trainer.accelerator

    def find_all(self) -> list[Path]:
        """Find the folders, from the oldest to the newest. A folder without the file of a process does not count."""
        steps = (path for path in self.folder.glob("*") if path.name.isascii() and path.name.isdigit())
        return sorted((path for path in steps if any(path.glob(PROCESS_FILES))), key=lambda path: int(path.name))

    def save(self) -> None:
        """Write a checkpoint of the current step. Older checkpoints stay until it is whole.

        Raises TuningError in all processes if the disk of one refuses, or if a folder of other files is in its place.
        """
        path = self.folder / f"{self.trainer.num_steps:06d}"
        unfinished = path.with_suffix(PART)
        states = {"videos": self.trainer.videos_state_dict()}
        if self.accelerator.is_main_process:
            states["shared"] = self.trainer.state_dict()
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in join_states(states).items()}
        try:
            config = json.dumps(self.trainer.config.as_fixed_settings(), sort_keys=True)
            metadata = {CONFIG_KEY: config, DIGEST_KEY: hash_content(config, tensors)}
            with fail_together(self.accelerator):
                write_tensor_file(unfinished / self._name_file(), tensors, metadata)
            with fail_together(self.accelerator):
                if self.accelerator.is_main_process:
                    self._keep(unfinished, path)
        except TuningError:  # of another process
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        except (OSError, SafetensorError) as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            good = f"; {self.find_all()[-1]} is good, and a tuning continues from it" if self.find_all() else ""
            raise TuningError(f"no checkpoint could be written to {path}: {error}; free some space{good}") from error

    def _keep(self, unfinished: Path, path: Path) -> None:
        """Give a whole checkpoint its name, and remove the oldest ones."""
        if path.exists():
            path.rmdir()  # an empty folder; any other is not ours to remove
        unfinished.replace(path)
        for old in self.find_all()[: -max(1, self.trainer.config.run.keep)]:
            shutil.rmtree(old.replace(old.with_suffix(PART)))  # a kill leaves no half of it under its name

    def resume(self) -> bool:
        """Load the newest checkpoint; return whether there is one.

        Raises TuningError for a damaged one, or one of another configuration or number of processes.
        """
        for unfinished in self.folder.glob(f"*{PART}"):
            if self.accelerator.is_main_process:
                shutil.rmtree(unfinished, ignore_errors=True)
        if not (found := self.find_all()):
            return False
        path = found[-1]
        processes = len(list(path.glob(PROCESS_FILES)))
        if processes != self.accelerator.num_processes:
            raise TuningError(
                f"{path} was made by {processes} processes, and this tuning has {self.accelerator.num_processes}; "
                f"use as many as before, or another folder"
            )
        try:
            saved_settings, shared = _read(path / self._name_file(0))
            refuse_other_config(path, saved_settings, self.trainer.config.as_fixed_settings())
            self.trainer.load_state_dict(select_state(shared, "shared"))
            _, own = _read(path / self._name_file())
            self.trainer.load_videos_state_dict(select_state(own, "videos"))
        except (OSError, SafetensorError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise TuningError(
                f"{path} is damaged ({shorten(error)}); delete that folder to continue from the one before"
            ) from error
        return True

    def _name_file(self, process: int | None = None) -> str:
        return f"process{self.accelerator.process_index if process is None else process}.safetensors"


def refuse_checkpoint_folder(folder: Path) -> None:
    """Raise TuningError for a folder that is a place for checkpoints of another tuning, which removes old ones."""
    for place in (folder.resolve(), *folder.resolve().parents):
        if place.parent.name == FOLDER_NAME and place.name.isdigit():
            raise TuningError(f"{folder} is a place for checkpoints of another tuning; choose another folder or name")


def _read(path: Path) -> tuple[dict[str, object], dict[str, Tensor]]:
    """Read the settings and the tensors of one process. Raises ValueError for a file that changed since it was saved.

    Older files without a digest are accepted unchecked.
    """
    tensors, metadata = read_tensors(path)
    config = metadata.get(CONFIG_KEY, "{}")
    if DIGEST_KEY in metadata and metadata[DIGEST_KEY] != hash_content(config, tensors):
        raise ValueError("it changed after it was saved")
    settings = parse_json(config)
    if not isinstance(settings, dict):
        raise ValueError("its configuration is not an object")
    return settings, tensors
