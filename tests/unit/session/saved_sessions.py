"""Session files that the tests of this folder write, compare and forge."""

import hashlib
import json
from pathlib import Path

import tiny
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from longlive.digest import hash_tensors
from longlive.session.session import Session

MODEL = tiny.model()


def list_content(session: Session) -> tuple:
    """List the content of a session but its keys: a session from a file has new ones."""
    tensors = [*session.blocks, *(switch.prompt.embedding for switch in session.switches)]
    switches = [
        (s.frame, s.prompt.text, s.prompt.rows, s.prompt.digest, str(s), s.before and s.before.digest)
        for s in session.switches
    ]
    head = (session.model, session.config, session.height, session.width, session.seed, session.dtype, session.channels)
    return head, switches, [(x.dtype, x.tolist()) for x in tensors]


def rewrite(path: Path, version: str = "1", tensors: dict | None = None, without: str = "", **header) -> None:
    """Write a session file again with other entries in its header or other tensors, and a digest that fits."""
    with safe_open(path, "pt") as file:
        session = json.loads(file.metadata()["session"])
    session = {name: value for name, value in (session | header).items() if name != without}
    everything = {name: x.clone() for name, x in (load_file(path) | (tensors or {})).items() if x is not None}
    written = json.dumps(session)
    digest = hashlib.sha256(f"{written} {hash_tensors(everything)}".encode()).hexdigest()
    metadata = {"format": "longlive.session", "version": version, "session": written, "digest": digest}
    path.unlink()
    save_file(everything, path, metadata)
