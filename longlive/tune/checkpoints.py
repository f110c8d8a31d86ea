"""What a tuning goes on from: a folder for each checkpoint, a file in it for each process; the newest few are kept.

A folder is written under another name and renamed, so that a killed tuning leaves whole checkpoints alone.
"""

import contextlib
import hashlib
import json
import shutil
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from ..digest import digest_of_tensors
from ..errors import TuningError
from ..files import PART, check_regular
from ..resume import joined, part
from ..store import write_atomically
from ..untrusted import brief, parse_json
from .config import refuse_other
from .tuning import Tuning

CONFIG, DIGEST = "longlive_tuning", "longlive_digest"  # in the metadata of a checkpoint


class Checkpoints:
    """The checkpoints of one tuning."""

    def __init__(self, tuning: Tuning, folder: Path) -> None:
        self.tuning, self.folder = tuning, folder / "checkpoints"
        self.accelerator = tuning.accelerator

    def all(self) -> list[Path]:
        """From the oldest to the newest; a folder without files is none."""
        steps = (path for path in self.folder.glob("*") if path.name.isascii() and path.name.isdigit())
        return sorted((path for path in steps if any(path.glob("*.safetensors"))), key=lambda path: int(path.name))

    def save(self) -> None:
        """Write a checkpoint of the steps made. Raises TuningError where the disk refuses; older ones stay."""
        path = self.folder / f"{self.tuning.num_steps:06d}"
        being_written = path.with_suffix(PART)
        tensors = {"videos": self.tuning.videos()}
        if self.accelerator.is_main_process:
            tensors["shared"] = self.tuning.state()
        found = {name: tensor.detach().cpu().contiguous() for name, tensor in joined(tensors).items()}
        try:
            config = json.dumps(self.tuning.config.determining(), sort_keys=True)
            metadata = {CONFIG: config, DIGEST: _digest(config, found)}
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
            then, shared = _read(path / self._name(0))
            refuse_other(path, then, self.tuning.config.determining())
            self.tuning.restore(part(shared, "shared"))
            self.tuning.restore_videos(part(_read(path / self._name())[1], "videos"))
        except (OSError, SafetensorError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise TuningError(
                f"{path} is damaged ({brief(error)}); delete that folder to go on from the one before"
            ) from error
        return True

    def _name(self, process: int | None = None) -> str:
        return f"process{self.accelerator.process_index if process is None else process}.safetensors"


def _read(path: Path) -> tuple[dict[str, object], dict[str, Tensor]]:
    """The configuration and the tensors of one process. Raises ValueError for a file that changed.

    Files of before they had a digest are taken as they are.
    """
    check_regular(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
    tensors, config = load_file(path), metadata.get(CONFIG, "{}")
    if DIGEST in metadata and metadata[DIGEST] != _digest(config, tensors):
        raise ValueError("it is not what was saved")
    found = parse_json(config)
    if not isinstance(found, dict):
        raise ValueError("its configuration is none")
    return found, tensors


def _digest(config: str, tensors: dict[str, Tensor]) -> str:
    return hashlib.sha256(f"{config} {digest_of_tensors(tensors)}".encode()).hexdigest()
