"""Renders that a soak stops and starves: the command line in another process, compared with an undisturbed run."""

import multiprocessing
import os
import resource
import shutil
import signal
import sys
import time
from pathlib import Path

import av
import torch
from patience import LIMIT_SECONDS
from safetensors.torch import load_file
from stored import write_block

from longlive.cli.main import main
from longlive.cli.video_options import SESSION_SUFFIX
from longlive.files import ABANDONED_SECONDS
from longlive.session.block_store import Store, hash_entry
from longlive.session.session_file import load_session

SCRIPT = (
    "2b | a red ring moves left at night\n1b keep | a red ring moves right at night\n"
    "2b | a red ring moves up at dusk\n1b cut | a blue disc moves down at dusk\n"
)
BLOCKS = 6  # of it

processes = multiprocessing.get_context("forkserver")  # children that start at once, though torch takes seconds
processes.set_forkserver_preload(["longlive.cli.main", "longlive.miniature.files", "tiny"])


def run_in_process(folder: Path, arguments: list[str], started, file_bytes: int | None) -> None:
    """Run the command line in this process, with its output in a file."""
    try:
        torch.set_num_threads(1)
        said = os.open(folder / "said.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(said, 1), os.dup2(said, 2)
        if file_bytes is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        started.set()
        sys.exit(main(arguments))
    except KeyboardInterrupt:
        sys.exit(130)


class Render:
    """A video of the miniature in a separate folder, made by the command line in as many runs as it takes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "out").mkdir(parents=True)
        (folder / "story.txt").write_text(SCRIPT)

    @property
    def video(self) -> Path:
        return self.folder / "out" / "story.mp4"

    @property
    def session(self) -> Path:
        return self.video.with_suffix(SESSION_SUFFIX)

    @property
    def store(self) -> Path:
        return self.folder / "blocks"

    def start(self, file_bytes: int | None = None) -> multiprocessing.process.BaseProcess:
        arguments = ["render", str(self.folder / "story.txt"), "--miniature", "-o", str(self.video)]
        started = processes.Event()
        run = processes.Process(
            target=run_in_process,
            args=(self.folder, [*arguments, "--store", str(self.store), "--device", "cpu"], started, file_bytes),
        )
        run.start()
        while not started.wait(1):
            assert run.is_alive(), "the command line did not begin"
        return run

    def finish(self, file_bytes: int | None = None) -> int:
        run = self.start(file_bytes)
        run.join(LIMIT_SECONDS)
        assert run.exitcode is not None, "the command line does not end"
        return run.exitcode

    def list_parts(self) -> list[Path]:
        return [*self.folder.rglob("*.part")]

    @property
    def stores(self) -> tuple[Path, Path]:
        """The folders of blocks and of fragments."""
        return self.store, self.store.with_name(f"{self.store.name}-fragments")

    def age_parts(self) -> None:
        """Make the partial files of a killed process old enough to be removed."""
        long_ago = time.time() - 2 * ABANDONED_SECONDS
        for part in self.list_parts():
            os.utime(part, (long_ago, long_ago))

    def count_stored(self) -> int:
        return len([*self.store.glob("??/*.safetensors")])

    def check_store(self) -> None:
        for folder in self.stores:
            check_entries(folder)

    def sweep(self) -> None:
        """Write an entry: the first entry that a store writes removes the partial files of killed processes."""
        for folder in self.stores:
            write_block(Store(folder, memory_bytes=0), "0" * 64, torch.zeros(1))


def check_entries(folder: Path) -> None:
    """Check that every entry of a store is what was stored."""
    for path in folder.glob("??/*.safetensors"):
        entry = load_file(path)
        assert torch.equal(entry.pop("digest"), hash_entry(entry)), f"{path} is a bad entry"


class Whole:
    """The undisturbed video that all others are compared with, and how long it took."""

    def __init__(self, folder: Path) -> None:
        first, second = Render(folder / "whole"), Render(folder / "again")
        assert first.finish() == 0, (first.folder / "said.txt").read_text()
        shutil.copytree(first.folder / "cache", second.folder / "cache")  # digests, as in every later run
        begin = time.monotonic()
        assert second.finish() == 0
        self.seconds = time.monotonic() - begin
        self.latents, self.video = load_session(first.session).latents(), first.video.read_bytes()
        self.cache = first.folder / "cache"
        assert second.video.read_bytes() == self.video, "two undisturbed runs wrote two files"

    def check(self, render: Render) -> None:
        assert torch.equal(load_session(render.session).latents(), self.latents), "other latents after a resume"
        assert render.video.read_bytes() == self.video, "another file after a resume"
        assert render.list_parts() == [], f"left over: {render.list_parts()}"

    def check_beginning(self, render: Render) -> None:
        """Check what an interrupt leaves: the session of a beginning, a file that plays, no partial file."""
        if render.session.exists():
            latents = load_session(render.session).latents()
            assert torch.equal(latents, self.latents[:, : latents.shape[1]]), "other latents before the interrupt"
        if render.video.exists():
            with av.open(render.video) as video:
                assert sum(1 for _ in video.decode(video=0)) > 0, "a video without a frame"
        assert render.list_parts() == [], f"left over: {render.list_parts()}"
