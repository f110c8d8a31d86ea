"""A session as a file: one safetensors with latents, prompt embeddings and a versioned header. Never a pickle.

The file holds the model's digest, not the model.
"""

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from .config import RolloutConfig
from .digest import digest_of_tensors
from .errors import ConfigError, SessionError, StoreError
from .session import Prompt, Session, Switch
from .store import write_atomically
from .timeline import Boundary

FORMAT = "longlive.session"
VERSION = 1
LATENTS = "latents"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class NotASession(SessionError):
    """A file is something else than a session."""


def save(session: Session, path: Path) -> None:
    """Write the session so that `path` holds it whole or is untouched. Raises StoreError where the disk refuses."""
    embeddings = {switch.prompt.digest: switch.prompt.embedding for switch in session.switches}
    prompts = list(embeddings)
    header = {
        "model": session.model,
        "config": session.config.as_dict(),
        "height": session.height,
        "width": session.width,
        "seed": session.seed,
        "dtype": str(session.dtype).removeprefix("torch."),
        "channels": session.channels,
        "keys": session.keys,
        "switches": [
            {
                "frame": s.frame,
                "boundary": s.boundary.value,
                "text": s.prompt.text,
                "rows": s.prompt.rows,
                "prompt": prompts.index(s.prompt.digest),
            }
            for s in session.switches
        ],
    }
    tensors = {LATENTS: session.latents().contiguous()}
    tensors |= {_prompt_name(i): embedding for i, embedding in enumerate(embeddings.values())}
    written = json.dumps(header)
    metadata = {"format": FORMAT, "version": str(VERSION), "session": written, "digest": _digest(written, tensors)}
    try:
        write_atomically(path, tensors, metadata)
    except (OSError, SafetensorError) as error:
        raise StoreError(
            f"the session cannot be written to {path}: {error}; free some space or choose another folder"
        ) from error


def load(path: Path) -> Session:
    """Read a session. Raises SessionError for a file that is none, is damaged, or is from a later version."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        if metadata.get("format") != FORMAT:
            raise NotASession(f"{path} is a safetensors file, but no LongLive session; choose a saved session")
        tensors = load_file(path)
    except FileNotFoundError as error:
        raise SessionError(f"there is no session at {path}; save one first, or check the name") from error
    except (OSError, SafetensorError) as error:
        raise NotASession(f"{path} is no whole session file ({error}); save the session anew") from error
    if metadata.get("version") != str(VERSION):
        raise SessionError(
            f"{path} is a session of version {metadata.get('version')}, expected {VERSION}; update LongLive Sessions"
        )
    try:
        if metadata["digest"] != _digest(metadata["session"], tensors):
            raise ValueError("it is not what was saved")
        return _session(json.loads(metadata["session"]), tensors)
    except (AttributeError, LookupError, TypeError, ValueError, ConfigError) as error:
        raise SessionError(f"the session file {path} is damaged ({error}); save the session anew") from error


def _session(header: dict, tensors: dict[str, torch.Tensor]) -> Session:
    config = RolloutConfig(**header["config"])
    switches = tuple(
        Switch(
            s["frame"],
            Boundary(s["boundary"]),
            Prompt(tensors[_prompt_name(s["prompt"])].clone(), s["rows"], s["text"]),
        )
        for s in header["switches"]
    )
    latents = tensors[LATENTS]
    session = Session(
        model=header["model"],
        config=config,
        height=header["height"],
        width=header["width"],
        seed=header["seed"],
        dtype=DTYPES[header["dtype"]],
        channels=header["channels"],
        switches=switches,
        blocks=tuple(block.clone() for block in latents.split(config.block, dim=1)) if latents.shape[1] else (),
        keys=tuple(header["keys"]),
    )
    if any(block.shape != session.block_shape or block.dtype != session.dtype for block in session.blocks):
        raise ValueError(f"its latents are {latents.dtype} {list(latents.shape)}")
    if len(session.keys) != len(session.blocks):
        raise ValueError(f"it has {len(session.keys)} keys for {len(session.blocks)} blocks")
    return session


def _digest(header: str, tensors: dict[str, torch.Tensor]) -> str:
    return hashlib.sha256(f"{header} {digest_of_tensors(tensors)}".encode()).hexdigest()


def _prompt_name(index: int) -> str:
    return f"prompt.{index}"
