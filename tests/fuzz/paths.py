"""Attacks by path: everything that may be in the place of a file, given to everything that opens or writes one."""

import contextlib
import io
import os
import random
import socket
from collections.abc import Callable
from pathlib import Path

import sessions
import torch
import weights
from harness import Target, expect
from stored import read_block, write_block

from longlive.cli.main import main
from longlive.cli.video_options import read_script
from longlive.errors import SessionError
from longlive.evaluation.clip_score import ClipScorer
from longlive.evaluation.evaluate import evaluate_video
from longlive.files import find_inside
from longlive.model.text_encoder import UMT5
from longlive.reference.verify import verify
from longlive.session.block_store import Store
from longlive.session.session_file import load_session, save_session
from longlive.tuning.config import read_config
from longlive.tuning.prompt_pairs import PromptPair, read_answers, read_pairs, write_pairs
from longlive.video.writer import VideoWriter
from longlive.weights.describe import describe_file
from longlive.weights.file_digest import digest_file
from longlive.weights.load import load_model
from longlive.weights.load_vae import load_vae
from longlive.weights.lora import Lora

DEVICES = ("/dev/zero", "/dev/null", "/dev/full", "/dev/random", "/dev/stdin", "/proc/self/mem", "/proc/self/environ",
           "/", "/proc", "/root", "/etc/passwd", "", ".", "..", "~", "~nobody/x", "\0", "a\0b", "\ud800",
           "x" * 300, "/".join(["d"] * 300), "a\nb", "\x1b[2J", "CON", "NUL.txt", "a:b", " ", "é", "😀")  # fmt: skip


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_loop(path: Path) -> None:
    path.symlink_to(path.name)


def make_long_loop(path: Path) -> None:
    path.symlink_to("other"), (path.parent / "other").symlink_to(path.name)


def link_to_nothing(path: Path) -> None:
    path.symlink_to("nowhere")


def link_to_zero(path: Path) -> None:
    path.symlink_to("/dev/zero")


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server, contextlib.suppress(OSError):
        server.bind(str(path))


def make_empty(path: Path) -> None:
    path.touch()


def make_sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 31)


def write_junk(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 8)


def write_text(path: Path) -> None:
    path.write_text("a text, no more\n")


def put_file_above(path: Path) -> None:
    path.parent.rmdir(), path.parent.write_text("a file where a folder belongs")


def make_folder_of_all(path: Path) -> None:
    """A folder with everything odd inside, under the names that readers look for."""
    path.mkdir()
    for name, make in (
        ("config.json", make_pipe),
        ("model.safetensors", make_loop),
        ("model_index.json", link_to_zero),
        ("vae", make_socket),
        ("tokenizer", make_pipe),
        ("adapter_config.json", link_to_nothing),
    ):
        make(path / name)


PLACES: tuple[Callable[[Path], object], ...] = (
    Path.mkdir, make_pipe, make_loop, make_long_loop, link_to_nothing, link_to_zero, make_socket, make_empty,
    make_sparse, write_junk, write_text, put_file_above, make_folder_of_all, lambda path: None,
)  # fmt: skip


def use_store(path: Path) -> None:
    """A store on a bad folder warns and answers from memory."""
    block, kept = sessions.make_session().blocks[0], Store(path)
    write_block(kept, sessions.KEY, block)
    found = read_block(kept, sessions.KEY, tuple(block.shape))
    expect(found is not None and torch.equal(found, block), "a store lost a block")


def write_video(path: Path) -> None:
    """Two frames, and a file that is there afterwards."""
    with VideoWriter(path) as writer:
        writer.write(torch.zeros(1, 5, 3, 32, 32))
    expect(path.is_file() and path.stat().st_size > 0, "a video that is said to be written is not there")


def write_session(path: Path) -> None:
    save_session(sessions.make_session(), path)
    expect(torch.equal(load_session(path).latents(), sessions.make_session().latents()), "another session was written")


def name_inside(path: Path) -> None:
    """A user's name for a file never leads out of the folder."""
    folder = Path("/tmp/fuzz-inside")
    for name in (str(path), path.name, f"../{path.name}", f"a/../../{path.name}"):
        found = find_inside(folder, name)
        expect(found is None or folder.resolve() in found.parents, f"{name!r} leads out, to {found}")


def make_command(*arguments: str) -> Callable[[Path], None]:
    """The command line: a status, and no traceback."""

    def run(path: Path) -> None:
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                status = main([argument.replace("PATH", str(path)) for argument in arguments])
        except SystemExit as error:  # of argparse, which knows better
            status = error.code
        if status:
            raise SessionError(f"the command ended with status {status}; its output is not checked here")

    return run


USES: tuple[Callable[[Path], object], ...] = (
    load_session, describe_file, load_model, Lora.read, load_vae, digest_file, read_script, read_config, read_pairs,
    lambda path: read_pairs(path, path), lambda path: read_answers(path, path), verify, evaluate_video,
    lambda path: UMT5.of_pipeline(path, device=torch.device("cpu"), dtype=torch.float32),
    ClipScorer.of_folder, use_store, write_video, write_session,
    lambda path: write_pairs([PromptPair("a", "b")], path), name_inside,
    lambda path: digest_file(weights.write_weights_file(), cache_dir=path),
    make_command("info", "PATH"), make_command("verify", "PATH"),
    make_command("evaluate", "PATH"), make_command("tune", "PATH"),
    make_command("render", "PATH", "--miniature", "-o", "x.mp4"),
    make_command("render", "PATH", "--weights", "PATH", "--pipeline", "PATH", "-o", "x.mp4"),
)  # fmt: skip


def attack_path(draw: random.Random, folder: Path) -> None:
    """A path that is absolute or relative to the folder we are in, where a colon could make it an address."""
    use = draw.choice(USES)
    if draw.random() < 0.3:
        path = Path(draw.choice(DEVICES))
        if use in (use_store, write_video, write_session) or use in USES[-9:-6]:  # what writes stays inside the folder
            path = folder / "".join(char for char in path.name if char not in "\0\ud800")
    else:
        parent = folder / "place"
        parent.mkdir()
        suffix = draw.choice(("", ".safetensors", ".pt", ".mp4", ".jsonl", ".toml"))
        path = parent / f"{draw.choice(('x', 'vae', '12:30'))}{suffix}"
        draw.choice(PLACES)(path)
    if not path.is_relative_to(folder) or draw.random() < 0.5:
        use(path)
        return
    beside = path.parent if path.parent.is_dir() else folder
    with contextlib.chdir(beside):
        use(path.relative_to(beside))


TARGETS = (Target("names and paths", 1500, attack_path),)
