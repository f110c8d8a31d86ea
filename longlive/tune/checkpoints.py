"""What a tuning goes on from: a folder for each checkpoint, a file in it for each process; the newest few are kept.

A folder is written under another name and renamed, so that a killed tuning leaves whole checkpoints alone.
"""

import contextlib
import json
import shutil
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from ..errors import TuningError
from ..files import PART
from ..resume import joined, part
from ..store import write_atomically
from .config import refuse_other
from .tuning import Tuning

CONFIG = "longlive_tuning"  # in the metadata of a checkpoint


class Checkpoints:
    """The checkpoints of one tuning."""

    def __init__(self, tuning: Tuning, folder: Path) -> None:
        self.tuning, self.folder = tuning, folder / "checkpoints"
        self.accelerator = tuning.accelerator

    def all(self) -> list[Path]:
        """From the oldest to the newest."""
        return sorted((path for path in self.folder.glob("*") if path.name.isdigit()), key=lambda path: int(path.name))

    def save(self) -> None:
        """Write a checkpoint of the steps made. Raises TuningError where the disk refuses; older ones stay."""
        path = self.folder / f"{self.tuning.num_steps:06d}"
        being_written = path.with_suffix(PART)
        tensors = {"videos": self.tuning.videos()}
        if self.accelerator.is_main_process:
            tensors["shared"] = self.tuning.state()
        found = {name: tensor.detach().cpu().contiguous() for name, tensor in joined(tensors).items()}
        try:
            metadata = {CONFIG: json.dumps(self.tuning.config.determining(), sort_keys=True)}
            write_atomically(being_written / self._name(), found, metadata)
            self.accelerator.wait_for_everyone()
            if self.accelerator.is_main_process:
                if path.exists():  # of a tuning that went back
                    shutil.rmtree(path)
                being_written.replace(path)
                for old in self.all()[: -max(1, self.tuning.config.run.keep)]:
                    shutil.rmtree(old)
        except (OSError, SafetensorError) as error:
            with contextlib.suppress(OSError):
                shutil.rmtree(being_written)
            good = f"; {self.all()[-1]} is good, and a tuning goes on from there" if self.all() else ""
            raise TuningError(f"no checkpoint could be written to {path}: {error}; free some space{good}") from error
        self.accelerator.wait_for_everyone()

    def resume(self) -> bool:
        """Go on from the newest checkpoint if there is one.

        Raises TuningError for one of another configuration or another number of processes, or a damaged one.
        """
        for torn in self.folder.glob(f"*{PART}"):
            if self.accelerator.is_main_process:
                shutil.rmtree(torn, ignore_errors=True)
        if not (found := self.all()):
            return False
        path = found[-1]
        processes = len(list(path.glob("*.safetensors")))
        if processes != self.accelerator.num_processes:
            raise TuningError(
                f"{path} was made by {processes} processes, this is {self.accelerator.num_processes}; "
                f"use as many as before, or another folder"
            )
        try:
            with safe_open(path / self._name(0), "pt") as file:
                then = json.loads((file.metadata() or {}).get(CONFIG, "{}"))
            refuse_other(path, then, self.tuning.config.determining())
            self.tuning.restore(part(load_file(path / self._name(0)), "shared"))
            self.tuning.restore_videos(part(load_file(path / self._name()), "videos"))
        except (OSError, SafetensorError, KeyError, RuntimeError) as error:
            raise TuningError(
                f"{path} is damaged ({error}); delete that folder to go on from the one before"
            ) from error
        return True

    def _name(self, process: int | None = None) -> str:
        return f"process{self.accelerator.process_index if process is None else process}.safetensors"
