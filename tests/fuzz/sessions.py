"""Attacks on session files and on the entries of a block store."""

import functools
import json
import os
import random
import tempfile
from dataclasses import fields
from pathlib import Path

import mutators
import tiny
import torch
from harness import Target, expect, expect_finite, write_file
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from stored import read_block, write_block

from longlive.digest import hash_content
from longlive.rollout.sampler import Sampler
from longlive.session.block_store import Store
from longlive.session.boundary import Blend
from longlive.session.session import Session
from longlive.session.session_file import load_session, save_session

LARGEST_GROWTH = 64  # times the frames of a whole session that an accepted one may ask for: more is not sampled


@functools.cache
def make_model():
    return tiny.model()


@functools.cache
def make_session() -> Session:
    """Four blocks under two prompts, the second within a blend and under a new seed."""
    with Sampler(make_model()) as sampler:
        video = sampler.sample(tiny.session(), 2)
        return sampler.sample(video.switched_to(tiny.prompt(1), seed=8, blend=Blend(3)), 2)


@functools.cache
def make_session_bytes() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        save_session(make_session(), Path(folder) / "plain.safetensors")
        return (Path(folder) / "plain.safetensors").read_bytes()


def attack_session(draw: random.Random, folder: Path) -> None:
    """A damaged session is refused, or nothing that it holds was damaged."""
    content = mutators.mutate_bytes(draw, make_session_bytes())
    found, whole = load_session(write_file(folder, "damaged.safetensors", content)), make_session()
    expect(torch.equal(found.latents(), whole.latents()), "other latents were accepted")
    for field in fields(Session):
        if field.name not in ("blocks", "keys", "switches"):
            expect(getattr(found, field.name) == getattr(whole, field.name), f"another {field.name} was accepted")
    of_found, of_whole = ([(s.frame, s.list_facts()) for s in x.switches] for x in (found, whole))
    expect(of_found == of_whole, "other switches were accepted")


def attack_forged_session(draw: random.Random, folder: Path) -> None:
    """A session that someone made up, whose digest is right: refused, or a session that can be continued."""
    header, _ = mutators.unpack(make_session_bytes())
    metadata, tensors = header["__metadata__"], load_tensors(make_session_bytes())
    if draw.random() < 0.7:
        metadata["session"] = mutators.write_json(draw, mutators.mutate_json(draw, json.loads(metadata["session"])))
    if draw.random() < 0.4:
        tensors = mutators.mutate_tensors(draw, tensors)
    try:
        metadata["digest"] = hash_content(metadata["session"], tensors)
    except (RuntimeError, ValueError, TypeError):  # of a dtype that no digest takes
        metadata["digest"] = "0" * 64
    content = save_tensors({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata)
    found = load_session(write_file(folder, "forged.safetensors", content))
    expect_finite(found.latents(), "an accepted session")
    expect(found.num_frames == found.latents().shape[1], "its frames are not counted right")
    if found.block_shape != make_session().block_shape or found.config.window > LARGEST_GROWTH:
        return
    longer = Sampler(make_model()).sample(found, 1)
    expect_finite(longer.latents(), "the continuation of an accepted session")


KEY, OTHER = "ab" * 32, "cd" * 32


def attack_store(draw: random.Random, folder: Path) -> None:
    """A damaged entry counts as missing; it can be written again, and other entries are not affected."""
    block = make_session().blocks[0]
    store = Store(folder, memory_bytes=0)
    write_block(store, KEY, block), write_block(store, OTHER, block)
    path = folder / KEY[:2] / f"{KEY}.safetensors"
    whole = path.read_bytes()
    match draw.randrange(12):
        case 0:
            path.unlink(), path.mkdir()
        case 1:
            path.unlink(), os.mkfifo(path)
        case 2:
            path.unlink(), path.symlink_to(draw.choice((path, "/dev/zero", "/nowhere", "/")))
        case 3 | 4:
            path.write_bytes(mutators.mutate_header(draw, whole))
        case 5 | 6:
            changed = mutators.mutate_tensors(draw, load_tensors(whole))
            path.write_bytes(save_tensors({name: tensor.contiguous() for name, tensor in changed.items()}))
        case _:
            path.write_bytes(mutators.mutate_bytes(draw, whole))
    found = read_block(Store(folder, memory_bytes=0), KEY, tuple(block.shape))
    expect(found is None or torch.equal(found, block), "a damaged block was given")
    again = Store(folder, memory_bytes=0)
    write_block(again, KEY, block)
    kept = read_block(again, KEY, tuple(block.shape))
    expect(kept is None or torch.equal(kept, block), "a block was written wrong")
    expect(kept is not None or path.is_dir(), "a block could not be kept")
    neighbour = read_block(Store(folder, memory_bytes=0), OTHER, tuple(block.shape))
    expect(neighbour is not None and torch.equal(neighbour, block), "a neighbour was lost")


TARGETS = (
    Target("session files", 1500, attack_session),
    Target("forged sessions", 1000, attack_forged_session),
    Target("store entries", 1000, attack_store),
)
