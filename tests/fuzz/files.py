"""Attacks on files of tensors: sessions, stored blocks, weights, adapters, VAEs, pickles, checkpoints of a tuning."""

import functools
import io
import json
import os
import pickle
import random
import tempfile
import zipfile
from dataclasses import fields
from pathlib import Path

import mutators
import tiny
import tiny_tuning
import torch
from harness import Target, expect, expect_finite
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from longlive.errors import LongLiveError
from longlive.model.vae import WanVAE
from longlive.rollout.sampler import Sampler
from longlive.session import session_file
from longlive.session.block_store import Store
from longlive.session.boundary import Boundary
from longlive.session.session import Session
from longlive.session.session_file import load_session, save_session
from longlive.tuning.checkpoints import Checkpoints
from longlive.tuning.trainer import Trainer
from longlive.weights.describe import describe_file
from longlive.weights.load import load_model
from longlive.weights.load_vae import load_vae
from longlive.weights.lora import Lora

LARGEST_GROWTH = 64  # times the frames of a whole session that an accepted one may ask for: more is not sampled
PLAIN = "plain.safetensors"


@functools.cache
def model():
    return tiny.model()


@functools.cache
def made_session() -> Session:
    """Four blocks under two prompts."""
    with Sampler(model()) as sampler:
        video = sampler.sample(tiny.session(), 2)
        return sampler.sample(video.switched_to(tiny.prompt(1), Boundary.RECACHE), 2)


@functools.cache
def session_bytes() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        save_session(made_session(), Path(folder) / PLAIN)
        return (Path(folder) / PLAIN).read_bytes()


def write_file(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def attack_session(draw: random.Random, folder: Path) -> None:
    """A damaged session is refused, or nothing that it holds was damaged."""
    content = mutators.mutate_bytes(draw, session_bytes())
    found, whole = load_session(write_file(folder, "damaged.safetensors", content)), made_session()
    expect(torch.equal(found.latents(), whole.latents()), "other latents were accepted")
    for field in fields(Session):
        if field.name not in ("blocks", "keys", "switches"):
            expect(getattr(found, field.name) == getattr(whole, field.name), f"another {field.name} was accepted")
    of_found, of_whole = ([(s.frame, s.boundary, s.prompt.digest) for s in x.switches] for x in (found, whole))
    expect(of_found == of_whole, "other prompts were accepted")


def attack_forged_session(draw: random.Random, folder: Path) -> None:
    """A session that someone made up, whose digest is right: refused, or a session that can be continued."""
    header, _ = mutators.unpack(session_bytes())
    metadata, tensors = header["__metadata__"], load_tensors(session_bytes())
    if draw.random() < 0.7:
        metadata["session"] = mutators.write_json(draw, mutators.mutate_json(draw, json.loads(metadata["session"])))
    if draw.random() < 0.4:
        tensors = mutators.mutate_tensors(draw, tensors)
    try:
        metadata["digest"] = session_file._hash_content(metadata["session"], tensors)
    except (RuntimeError, ValueError, TypeError):  # of a dtype that no digest takes
        metadata["digest"] = "0" * 64
    content = save_tensors({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata)
    found = load_session(write_file(folder, "forged.safetensors", content))
    expect_finite(found.latents(), "an accepted session")
    expect(found.num_frames == found.latents().shape[1], "its frames are not counted right")
    if found.block_shape != made_session().block_shape or found.config.window > LARGEST_GROWTH:
        return
    longer = Sampler(model()).sample(found, 1)
    expect_finite(longer.latents(), "the continuation of an accepted session")


KEY, OTHER = "ab" * 32, "cd" * 32


def attack_store(draw: random.Random, folder: Path) -> None:
    """A damaged entry counts as none; its neighbour and the next writing of it are well."""
    block = made_session().blocks[0]
    store = Store(folder, memory_bytes=0)
    store.put(KEY, block), store.put(OTHER, block)
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
    found = Store(folder, memory_bytes=0).get(KEY, tuple(block.shape))
    expect(found is None or torch.equal(found, block), "a damaged block was given")
    again = Store(folder, memory_bytes=0)
    again.put(KEY, block)
    kept = again.get(KEY, tuple(block.shape))
    expect(kept is None or torch.equal(kept, block), "a block was written wrong")
    expect(kept is not None or path.is_dir(), "a block could not be kept")
    neighbour = Store(folder, memory_bytes=0).get(OTHER, tuple(block.shape))
    expect(neighbour is not None and torch.equal(neighbour, block), "a neighbour was lost")


@functools.cache
def weights() -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in tiny.model().tree.state_dict().items()}  # type: ignore[union-attr]


GEOMETRY_STATED = '{"num_heads": 2, "text_len": 6}'


@functools.cache
def weights_bytes() -> bytes:
    return save_tensors(weights(), {"geometry": GEOMETRY_STATED, "config": '{"transformer": {"causal_ar": true}}'})


def damage(draw: random.Random, content: bytes, tensors: dict[str, Tensor]) -> bytes:
    """A safetensors file with damage in its bytes, its header or its tensors."""
    match draw.randrange(3):
        case 0:
            return mutators.mutate_bytes(draw, content)
        case 1:
            return mutators.mutate_header(draw, content)
    metadata = mutators.unpack(content)[0].get("__metadata__")
    changed = mutators.mutate_tensors(draw, tensors)
    return save_tensors({name: tensor.contiguous() for name, tensor in changed.items()}, metadata)


def read_model(path: Path, lora: Path | None = None, **stated: int) -> None:
    """Load a network: every tensor of it is finite."""
    tree, _ = load_model(path, lora=lora, dtype=torch.float32, **stated)
    expect_finite(tree.state_dict(), "a loaded network")


def attack_checkpoint(draw: random.Random, folder: Path) -> None:
    """Weights have no digest: what is read is a network that fits, of finite numbers."""
    path = write_file(folder, "weights.safetensors", damage(draw, weights_bytes(), weights()))
    if draw.random() < 0.3:
        expect(len(describe_file(path)) < 20_000, "the description is endless")
    read_model(path)


def attack_folder(draw: random.Random, folder: Path) -> None:
    """A released folder whose descriptions say something else."""
    config = {"_class_name": "CausalWanModel", "num_heads": 2, "text_len": 6, "dim": 24, "num_layers": 3}
    names = sorted(weights())
    index = {"metadata": {"total_size": 1}, "weight_map": {}}
    for number in range(2):
        file = f"diffusion_pytorch_model-0000{number + 1}-of-00002.safetensors"
        part = {name: weights()[name] for name in names[number::2]}
        (folder / file).write_bytes(save_tensors(part))
        index["weight_map"] |= dict.fromkeys(part, file)
    which = draw.randrange(3)
    texts = [mutators.write_json(draw, mutators.mutate_json(draw, value)) for value in (config, index)]
    if which != 0:
        config_text = texts[0]
    else:
        config_text = mutators.write_json(random.Random(0), config)
    (folder / "config.json").write_text(config_text, encoding="utf-8", errors="surrogatepass")
    if which != 1:
        (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(texts[1], errors="surrogatepass")
    read_model(folder)


@functools.cache
def adapter() -> dict[str, Tensor]:
    generator, found = torch.Generator().manual_seed(3), {}
    for name, tensor in weights().items():
        if name.startswith("blocks.0.") and name.endswith(".weight") and tensor.dim() == 2:
            module = f"base_model.model.{name.removesuffix('.weight')}"
            rows, columns = tensor.shape
            found[f"{module}.lora_A.weight"] = torch.randn(2, columns, generator=generator)
            found[f"{module}.lora_B.weight"] = torch.randn(rows, 2, generator=generator)
            found[f"{module}.alpha"] = torch.tensor(2.0)
    return found


@functools.cache
def weights_file() -> Path:
    return write_file(Path(tempfile.mkdtemp(prefix="fuzz-weights-")), PLAIN, weights_bytes())


def attack_lora(draw: random.Random, folder: Path) -> None:
    """An adapter with damage, or another alpha, or factors of other sizes."""
    content = save_tensors(adapter(), {"ss_network_alpha": "2", "alpha": "2", "lora_alpha": "2"})
    path = write_file(folder, "lora.safetensors", damage(draw, content, adapter()))
    lora = Lora.read(path)
    expect_finite(list(lora.alphas), "an alpha")
    lora.as_comfy_state()
    read_model(weights_file(), path)


@functools.cache
def vae_tensors() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {name: 0.1 * torch.randn(tensor.shape) for name, tensor in WanVAE(2).state_dict().items()}


@functools.cache
def vae_bytes() -> bytes:
    return save_tensors(vae_tensors())


def attack_vae(draw: random.Random, folder: Path) -> None:
    path = write_file(folder, "vae.safetensors", damage(draw, vae_bytes(), vae_tensors()))
    expect_finite(load_vae(path).state_dict(), "a loaded VAE")


class Hostile:
    """What runs a function as soon as it is unpickled."""

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
    state = dict(weights()) if draw.random() < 0.5 else {}
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
def saved_by_torch(zipped: bool) -> bytes:
    content = io.BytesIO()
    torch.save({"generator": weights(), "step": 3}, content, _use_new_zipfile_serialization=zipped)
    return content.getvalue()


PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)


def rezipped(content: bytes, method: int) -> bytes:
    """The same archive packed by an ordinary zip."""
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(packed, "w", method) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return packed.getvalue()


def attack_torch_file(draw: random.Random, folder: Path) -> None:
    """A `.pt` with damage, packed again, of the format before 2020, or of tensors that claim to be huge."""
    state: dict = dict(weights())
    match draw.randrange(6):
        case 0:
            content = mutators.mutate_bytes(draw, saved_by_torch(True))
        case 1:
            content = mutators.mutate_bytes(draw, saved_by_torch(False))
        case 2:
            content = rezipped(saved_by_torch(True), draw.choice(PACKINGS))
        case 3:
            name = draw.choice(sorted(state))
            state[name] = torch.zeros(1).expand(10 ** draw.randint(3, 10))
            content = torch_bytes(state)
        case 4:
            name = draw.choice(sorted(state))
            state[name] = draw.choice((state[name].to_sparse(), torch.zeros(2, 3, device="meta"), state[name].tolist(),
                                       torch.nn.Parameter(state[name]), None, 5, "x"))  # fmt: skip
            content = torch_bytes({"generator": state})
        case _:
            content = torch_bytes(mutators.mutate_tensors(draw, state))
    path = write_file(folder, "weights.pt", content)
    if draw.random() < 0.3:
        describe_file(path)
    read_model(path, num_heads=2, text_len=6)


def torch_bytes(state: object) -> bytes:
    content = io.BytesIO()
    torch.save(state, content)
    return content.getvalue()


@functools.cache
def tuning() -> Trainer:
    return tiny_tuning.make_trainer(tiny_tuning.with_run(steps=2))


@functools.cache
def checkpoint() -> tuple[bytes, dict[str, Tensor]]:
    """A checkpoint of two steps, and the state it holds."""
    one = tuning()
    while one.num_steps < 2:
        one.step()
    with tempfile.TemporaryDirectory() as folder:
        Checkpoints(one, Path(folder)).save()
        (path,) = Path(folder).rglob("*.safetensors")
        return path.read_bytes(), {name: tensor.clone() for name, tensor in one.state_dict().items()}


def attack_tuning_checkpoint(draw: random.Random, folder: Path) -> None:
    """A damaged checkpoint is refused, or nothing in it was damaged."""
    whole, state = checkpoint()
    path = folder / "checkpoints" / draw.choice(("000002", "000002", "2", "²", "000000", "99999999999"))
    path.mkdir(parents=True)
    if draw.random() < 0.2:
        (folder / "checkpoints" / draw.choice(("000003", "x", "³", "000004.part", "-1"))).mkdir()
    content = damage(draw, whole, load_tensors(whole))
    (path / "process0.safetensors").write_bytes(content)
    one = tuning()
    if not Checkpoints(one, folder).resume():
        return
    found = one.state_dict()
    expect(found.keys() == state.keys(), "other tensors were resumed")
    for name, tensor in state.items():
        expect(torch.equal(found[name], tensor), f"another {name} was resumed")


TARGETS = (
    Target("session files", 1500, attack_session),
    Target("forged sessions", 1000, attack_forged_session),
    Target("store entries", 1000, attack_store),
    Target("checkpoints", 1000, attack_checkpoint),
    Target("checkpoint folders", 300, attack_folder),
    Target("LoRAs", 750, attack_lora),
    Target("VAE files", 400, attack_vae),
    Target("hostile pickles", 300, attack_pickle),
    Target(".pt files", 600, attack_torch_file),
    Target("tuning checkpoints", 500, attack_tuning_checkpoint),
)
