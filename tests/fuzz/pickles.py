"""Attacks on files that torch saves: code in pickles, damaged and repacked archives, tensors that claim to be huge."""

import functools
import io
import os
import pickle
import random
import zipfile
from pathlib import Path

import mutators
import torch
from harness import Target, expect, write_file
from weights import make_weights, read_model

from longlive.errors import LongLiveError
from longlive.weights.describe import describe_file
from longlive.weights.load_vae import load_vae
from longlive.weights.lora import Lora


class Hostile:
    """An object that runs a function when it is unpickled."""

    def __init__(self, function, *arguments) -> None:
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


def attack_pickle(draw: random.Random, folder: Path) -> None:
    """A pickle that would leave a file behind if anything in it ran."""
    mark = folder / "ran"
    harm = draw.choice((
        Hostile(os.system, f"touch {mark}"), Hostile(os.mkdir, str(mark)), Hostile(exec, f"open({str(mark)!r}, 'w')"),
        Hostile(eval, f"open({str(mark)!r}, 'w')"), Hostile(open, str(mark), "w"), Hostile(Path.touch, mark),
        Hostile(getattr, Hostile(__import__, "os"), "system"), Hostile(torch.save, {}, str(mark)),
        Hostile(torch.load, str(mark)), Hostile(torch.hub.load, "a/b", "c"),
    ))  # fmt: skip
    state = dict(make_weights()) if draw.random() < 0.5 else {}
    place = draw.choice(("blocks.0.norm3.weight", "generator", "model", "harm"))
    state[place] = draw.choice((harm, [harm], {"x": harm}))
    path = folder / draw.choice(("weights.pt", "weights.safetensors", "weights.bin"))
    match draw.randrange(4):
        case 0:
            path.write_bytes(pickle.dumps(state, protocol=draw.randint(2, 5)))
        case 1:
            torch.save(state, path, _use_new_zipfile_serialization=False)
        case 2:
            torch.save(state, path)
        case _:
            torch.save(state, path)
            path.write_bytes(mutators.mutate_bytes(draw, path.read_bytes()))
    try:
        draw.choice((read_model, describe_file, Lora.read, load_vae))(path)
    except LongLiveError:
        expect(not mark.exists(), "code in a file ran")
        raise
    expect(not mark.exists(), "code in a file ran")


@functools.cache
def save_by_torch(zipped: bool) -> bytes:
    content = io.BytesIO()
    torch.save({"generator": make_weights(), "step": 3}, content, _use_new_zipfile_serialization=zipped)
    return content.getvalue()


PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)


def pack_again(content: bytes, method: int) -> bytes:
    """The same archive packed by an ordinary zip."""
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(packed, "w", method) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return packed.getvalue()


def attack_torch_file(draw: random.Random, folder: Path) -> None:
    """A `.pt` with damage, packed again, of the format before 2020, or of tensors that claim to be huge."""
    state: dict = dict(make_weights())
    match draw.randrange(6):
        case 0:
            content = mutators.mutate_bytes(draw, save_by_torch(True))
        case 1:
            content = mutators.mutate_bytes(draw, save_by_torch(False))
        case 2:
            content = pack_again(save_by_torch(True), draw.choice(PACKINGS))
        case 3:
            name = draw.choice(sorted(state))
            state[name] = torch.zeros(1).expand(10 ** draw.randint(3, 10))
            content = pack_by_torch(state)
        case 4:
            name = draw.choice(sorted(state))
            state[name] = draw.choice((state[name].to_sparse(), torch.zeros(2, 3, device="meta"), state[name].tolist(),
                                       torch.nn.Parameter(state[name]), None, 5, "x"))  # fmt: skip
            content = pack_by_torch({"generator": state})
        case _:
            content = pack_by_torch(mutators.mutate_tensors(draw, state))
    path = write_file(folder, "weights.pt", content)
    if draw.random() < 0.3:
        describe_file(path)
    read_model(path, num_heads=2, text_len=6)


def pack_by_torch(state: object) -> bytes:
    content = io.BytesIO()
    torch.save(state, content)
    return content.getvalue()


TARGETS = (
    Target("hostile pickles", 300, attack_pickle),
    Target(".pt files", 600, attack_torch_file),
)
