"""A session as a file: one safetensors with latents, prompt embeddings and a versioned header. Never a pickle.

The file holds the model's digest, not the model.
"""

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from .config import MAX_SEED, SIZE_STEP, RolloutConfig
from .digest import digest_of_tensors
from .errors import ConfigError, SessionError, StoreError
from .files import check_regular
from .finite import is_finite
from .session import Prompt, Session, Switch
from .store import write_atomically
from .timeline import Boundary
from .untrusted import brief, parse_json, read_field

FORMAT = "longlive.session"
VERSION = 1
LATENTS = "latents"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PROMPT_DTYPES = {*DTYPES.values(), torch.float64}
KEY = re.compile("[0-9a-f]{64}")
MAX_SIZE = 1 << 14  # pixels; far beyond what a model makes
MAX_CHANNELS = 1 << 10
MAX_PROMPT_VALUES = 1 << 27  # of a prompt with its zero rows, which the file need not hold: 64 times those of umT5


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
    """Read a session. Raises SessionError for a file that is none, is damaged, or is from a later version.

    The file may come from anyone: every value in it is checked, and of the `keys` only their form. The session begins
    a new chain of keys over what it holds (`Session.rekeyed`), so that it can neither put its blocks into the videos
    of a store nor be answered from them.
    """
    try:
        check_regular(path)
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        if metadata.get("format") != FORMAT:
            raise NotASession(f"{path} is a safetensors file, but no LongLive session; choose a saved session")
        tensors = load_file(path)
    except FileNotFoundError as error:
        raise SessionError(f"there is no session at {path}; save one first, or check the name") from error
    except (OSError, SafetensorError, RuntimeError) as error:
        raise NotASession(f"{path} is no whole session file ({brief(error)}); save the session anew") from error
    if metadata.get("version") != str(VERSION):
        version = brief(metadata.get("version"))
        raise SessionError(f"{path} is a session of version {version}, expected {VERSION}; update LongLive Sessions")
    try:
        if metadata["digest"] != _digest(metadata["session"], tensors):
            raise ValueError("it is not what was saved")
        return _session(parse_json(metadata["session"]), tensors).rekeyed()
    except (LookupError, TypeError, ValueError, ConfigError) as error:
        raise SessionError(f"the session file {path} is damaged ({brief(error)}); save the session anew") from error


def _session(header: object, tensors: dict[str, Tensor]) -> Session:
    config = RolloutConfig(**read_field(header, "config", dict))
    keys = read_field(header, "keys", tuple[str, ...])
    dtype = DTYPES[read_field(header, "dtype", str)]
    session = Session(
        model=read_field(header, "model", str),
        config=config,
        height=_number(header, "height", SIZE_STEP, MAX_SIZE),
        width=_number(header, "width", SIZE_STEP, MAX_SIZE),
        seed=_number(header, "seed", 0, MAX_SEED),
        dtype=dtype,
        channels=_number(header, "channels", 1, MAX_CHANNELS),
        switches=_switches(header, tensors, config.block, len(keys)),
    )
    if not all(map(KEY.fullmatch, keys)):
        raise ValueError("its keys are none")
    latents, (_, frames, *cell) = tensors[LATENTS], session.block_shape
    if latents.shape != (1, frames * len(keys), *cell) or latents.dtype != dtype or not is_finite(latents):
        raise ValueError(f"its latents are {latents.dtype} {list(latents.shape)} for {len(keys)} blocks, or not finite")
    blocks = tuple(block.clone() for block in latents.split(frames, dim=1)) if keys else ()
    return replace(session, blocks=blocks, keys=keys)


def _switches(header: object, tensors: dict[str, Tensor], block: int, num_blocks: int) -> tuple[Switch, ...]:
    """The switches, the first of them at frame 0, each at a later block."""
    switches = tuple(
        Switch(
            _number(entry, "frame", 0, num_blocks * block),
            read_field(entry, "boundary", Boundary),
            _prompt(entry, tensors),
        )
        for entry in read_field(header, "switches", list)
    )
    frames = [switch.frame for switch in switches]
    begun = bool(frames) and frames[0] == 0 and switches[0].boundary is Boundary.DISCARD
    if not begun and (frames or num_blocks):
        raise ValueError("it does not begin with a prompt")
    if any(frame % block for frame in frames) or frames != sorted(set(frames)):
        raise ValueError(f"its switches are at the frames {frames}, which are not each at a later block")
    if len({switch.prompt.embedding.shape[2] for switch in switches}) > 1:
        raise ValueError("its prompts are of different widths")
    return switches


def _prompt(entry: object, tensors: dict[str, Tensor]) -> Prompt:
    embedding = tensors[_prompt_name(read_field(entry, "prompt", int))]
    if embedding.dim() != 3 or embedding.shape[0] != 1 or not embedding.numel():
        raise ValueError(f"a prompt embedding is of shape {list(embedding.shape)}")
    if embedding.dtype not in PROMPT_DTYPES or not is_finite(embedding):
        raise ValueError(f"a prompt embedding is {embedding.dtype}, or not finite")
    _, used, width = embedding.shape
    return Prompt(
        embedding.clone(), _number(entry, "rows", used, MAX_PROMPT_VALUES // width), read_field(entry, "text", str)
    )


def _number(entry: object, name: str, low: int, high: int) -> int:
    value = read_field(entry, name, int)
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}; it must be from {low} to {high}")
    return value


def _digest(header: str, tensors: dict[str, Tensor]) -> str:
    return hashlib.sha256(f"{header} {digest_of_tensors(tensors)}".encode()).hexdigest()


def _prompt_name(index: int) -> str:
    return f"prompt.{index}"
