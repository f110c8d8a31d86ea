"""A session as a file: one safetensors with latents, prompt embeddings and a versioned header. Never a pickle.

The file holds the model's digest, not the model.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from ..config import MAX_SEED, RolloutConfig, RolloutKind
from ..digest import hash_content
from ..errors import ConfigError, SessionError, StoreError, shorten
from ..model.dtypes import COMPUTE_DTYPES, is_finite, name_dtype
from ..units import MAX_SIZE, SIZE_STEP
from ..untrusted import parse_json, read_field
from ..weights.tensor_file import read_metadata, read_tensors, write_tensor_file
from .boundary import MAX_BLEND, Blend, Boundary, Curve
from .in_flight import InFlight
from .prompt import Prompt
from .session import Session
from .switch import Switch

FORMAT = "longlive.session"
VERSION = 1
DIRECTED_VERSION = 2  # with the seeds or blends of switches, which version 1 does not know
ROLLING_VERSION = 3  # of a rolling video
VERSIONS = tuple(map(str, (VERSION, DIRECTED_VERSION, ROLLING_VERSION)))
LATENTS = "latents"
IN_FLIGHT = "in_flight"
DTYPES = {name_dtype(dtype): dtype for dtype in COMPUTE_DTYPES.values()}
PROMPT_DTYPES = {*DTYPES.values(), torch.float64}
KEY = re.compile("[0-9a-f]{64}")
MAX_CHANNELS = 1 << 10
MAX_PROMPT_VALUES = 1 << 27  # rows times width, 64 times those of umT5; counts zero rows, which are not in the file


class NotASession(SessionError):
    """The file is not a session."""


def check_session_path(path: str | Path) -> None:
    """Check that a session may be written to a path: it replaces no file but a session. Raises StoreError."""
    if not os.path.isfile(path) or not os.path.getsize(path):
        return
    try:
        is_session = read_metadata(Path(path)).get("format") == FORMAT
    except (OSError, SafetensorError):
        is_session = False
    if not is_session:
        raise StoreError(f"{path} is not a saved session, so it is not replaced; choose another name")


def save_session(session: Session, path: str | Path) -> None:
    """Write the session; `path` then holds all of it or is unchanged.

    Raises StoreError if the disk refuses, or if another file than a session has that name.
    """
    check_session_path(path)
    prompts = [prompt for switch in session.switches for prompt in (switch.prompt, switch.before) if prompt]
    embeddings = {prompt.digest: prompt.embedding for prompt in prompts}
    indices = {digest: index for index, digest in enumerate(embeddings)}
    header = {
        "model": session.model,
        "config": session.config.as_dict(),
        "height": session.height,
        "width": session.width,
        "seed": session.seed,
        "dtype": name_dtype(session.dtype),
        "channels": session.channels,
        "keys": session.keys,
        "switches": [_describe_switch(switch, indices) for switch in session.switches],
    }
    tensors = {LATENTS: session.latents().contiguous()}
    if session.config.kind is RolloutKind.ROLLING:
        header["ends"] = session.ends
    if session.in_flight:
        header["level"] = session.in_flight.level
        tensors[IN_FLIGHT] = torch.cat(session.in_flight.blocks, dim=1)
    tensors |= {_name_prompt(i): embedding for i, embedding in enumerate(embeddings.values())}
    written = json.dumps(header)
    digest = hash_content(written, tensors)
    metadata = {"format": FORMAT, "version": str(choose_version(session)), "session": written, "digest": digest}
    try:
        write_tensor_file(Path(path), tensors, metadata)
    except (OSError, SafetensorError) as error:
        raise StoreError(
            f"the session cannot be written to {path}: {error}; free some space or choose another folder"
        ) from error


def choose_version(session: Session) -> int:
    """Choose the oldest version of the file that has a place for what the session holds."""
    if session.config.kind is RolloutKind.ROLLING:
        return ROLLING_VERSION
    is_directed = any(switch.blend or switch.seed is not None for switch in session.switches)
    return DIRECTED_VERSION if is_directed else VERSION


def load_session(path: str | Path) -> Session:
    """Read a session. Raises SessionError for a file that is not a session, is damaged, or is from a later version.

    The file may come from anyone, so every value in it is checked; `keys` are checked for their form only. The session
    gets new keys over its content (`Session.rekeyed`), so that its blocks never mix with those of a store.
    """
    try:
        tensors, metadata = read_tensors(Path(path))
    except FileNotFoundError as error:
        raise SessionError(f"there is no session at {path}; save one first, or check the name") from error
    except (OSError, SafetensorError, RuntimeError) as error:
        raise NotASession(f"{path} is not a whole session file ({shorten(error)}); save the session again") from error
    if metadata.get("format") != FORMAT:
        raise NotASession(f"{path} is a safetensors file, but not a LongLive session; choose a saved session")
    if metadata.get("version") not in VERSIONS:
        version, known = shorten(metadata.get("version")), " or ".join(VERSIONS)
        raise SessionError(f"{path} is a session of version {version}, expected {known}; update LongLive Sessions")
    try:
        if metadata["digest"] != hash_content(metadata["session"], tensors):
            raise ValueError("it is not what was saved")
        return _parse_session(parse_json(metadata["session"]), tensors).rekeyed()
    except (LookupError, TypeError, ValueError, ConfigError) as error:
        raise SessionError(f"the session file {path} is damaged ({shorten(error)}); save the session again") from error


def _parse_session(header: object, tensors: dict[str, Tensor]) -> Session:
    config = RolloutConfig(**read_field(header, "config", dict))
    keys = read_field(header, "keys", tuple[str, ...])
    dtype = DTYPES[read_field(header, "dtype", str)]
    session = Session(
        model=read_field(header, "model", str),
        config=config,
        height=_read_number(header, "height", SIZE_STEP, MAX_SIZE),
        width=_read_number(header, "width", SIZE_STEP, MAX_SIZE),
        seed=_read_number(header, "seed", 0, MAX_SEED),
        dtype=dtype,
        channels=_read_number(header, "channels", 1, MAX_CHANNELS),
        switches=_parse_switches(header, tensors, config.block, len(keys)),
    )
    if not all(map(KEY.fullmatch, keys)):
        raise ValueError("its keys are not hashes")
    latents, (_, frames, *cell) = tensors[LATENTS], session.block_shape
    if latents.shape != (1, frames * len(keys), *cell) or latents.dtype != dtype or not is_finite(latents):
        raise ValueError(f"its latents are {latents.dtype} {list(latents.shape)} for {len(keys)} blocks, or not finite")
    blocks = tuple(block.clone() for block in latents.split(frames, dim=1)) if keys else ()
    session = replace(session, blocks=blocks, keys=keys)
    return _parse_in_flight(session, header, tensors) if config.kind is RolloutKind.ROLLING else session


def _parse_in_flight(session: Session, header: object, tensors: dict[str, Tensor]) -> Session:
    """Read where a rolling video was finished, and its blocks in flight."""
    ends, frames = tuple(read_field(header, "ends", list)), session.config.block
    fits = all(isinstance(end, int) and 0 < end <= session.num_frames and end % frames == 0 for end in ends)
    if not fits or list(ends) != sorted(set(ends)):
        raise ValueError(f"its ends are at the frames {ends}, which are not each at a later block")
    session = replace(session, ends=ends)
    if IN_FLIGHT not in tensors:
        return session
    latents, level = tensors[IN_FLIGHT], _read_number(header, "level", 1, session.config.num_in_flight)
    count = latents.shape[1] // frames if latents.dim() == len(session.block_shape) else 0
    _, _, *cell = session.block_shape
    if latents.shape != (1, count * frames, *cell) or not 0 < count <= level:
        raise ValueError(f"its latents in flight are {list(latents.shape)} at level {level}")
    if latents.dtype != session.dtype or not is_finite(latents):
        raise ValueError(f"its latents in flight are {latents.dtype}, or not finite")
    blocks = tuple(block.clone() for block in latents.split(frames, dim=1))
    return replace(session, in_flight=InFlight(blocks, level, ""))


def _describe_switch(switch: Switch, indices: Mapping[str, int]) -> dict:
    """Describe a switch as JSON values; `indices` finds an embedding by its digest. Unused fields are left out."""
    entry = {"frame": switch.frame, "boundary": switch.boundary.value, **_describe_prompt(switch.prompt, indices)}
    if switch.seed is not None:
        entry["seed"] = switch.seed
    if switch.blend and switch.before:
        before = _describe_prompt(switch.before, indices)
        entry["blend"] = {"blocks": switch.blend.blocks, "curve": switch.blend.curve.value, "before": before}
    return entry


def _describe_prompt(prompt: Prompt, indices: Mapping[str, int]) -> dict:
    return {"text": prompt.text, "rows": prompt.rows, "prompt": indices[prompt.digest]}


def _parse_switches(header: object, tensors: dict[str, Tensor], block: int, num_blocks: int) -> tuple[Switch, ...]:
    """Read the switches: the first is at frame 0, each of the others at a later block."""
    last = num_blocks * block
    switches = tuple(_parse_switch(entry, tensors, last) for entry in read_field(header, "switches", list))
    frames = [switch.frame for switch in switches]
    begins_with_prompt = bool(frames) and frames[0] == 0 and switches[0].boundary is Boundary.CUT
    if not begins_with_prompt and (frames or num_blocks):
        raise ValueError("it does not begin with a prompt")
    if any(frame % block for frame in frames) or frames != sorted(set(frames)):
        raise ValueError(f"its switches are at the frames {frames}, which are not each at a later block")
    prompts = [prompt for switch in switches for prompt in (switch.prompt, switch.before) if prompt]
    if len({prompt.embedding.shape[2] for prompt in prompts}) > 1:
        raise ValueError("its prompts are of different widths")
    return switches


def _parse_switch(entry: object, tensors: dict[str, Tensor], last: int) -> Switch:
    boundary, prompt = read_field(entry, "boundary", Boundary), _parse_prompt(entry, tensors)
    seed = _read_number(entry, "seed", 0, MAX_SEED) if _has_field(entry, "seed") else None
    blend = before = None
    if _has_field(entry, "blend"):
        written = read_field(entry, "blend", dict)
        blend = Blend(_read_number(written, "blocks", 1, MAX_BLEND), read_field(written, "curve", Curve))
        before = _parse_prompt(read_field(written, "before", dict), tensors)
    return Switch(_read_number(entry, "frame", 0, last), boundary, prompt, seed, blend, before)


def _parse_prompt(entry: object, tensors: dict[str, Tensor]) -> Prompt:
    embedding = tensors[_name_prompt(read_field(entry, "prompt", int))]
    if embedding.dim() != 3 or embedding.shape[0] != 1 or not embedding.numel():
        raise ValueError(f"a prompt embedding is of shape {list(embedding.shape)}")
    if embedding.dtype not in PROMPT_DTYPES or not is_finite(embedding):
        raise ValueError(f"a prompt embedding is {embedding.dtype}, or not finite")
    _, used, width = embedding.shape
    return Prompt(
        embedding.clone(), _read_number(entry, "rows", used, MAX_PROMPT_VALUES // width), read_field(entry, "text", str)
    )


def _has_field(entry: object, name: str) -> bool:
    return isinstance(entry, dict) and name in entry


def _read_number(entry: object, name: str, low: int, high: int) -> int:
    value = read_field(entry, name, int)
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}; it must be from {low} to {high}")
    return value


def _name_prompt(index: int) -> str:
    return f"prompt.{index}"
