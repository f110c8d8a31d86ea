"""Attacks on weights files: networks, released folders, LoRAs, VAEs."""

import functools
import random
import tempfile
from pathlib import Path

import mutators
import tiny
import torch
from harness import Target, expect, expect_finite, write_file
from safetensors.torch import save as save_tensors
from torch import Tensor

from longlive.model.vae import WanVAE
from longlive.weights.describe import describe_file
from longlive.weights.load import load_model
from longlive.weights.load_vae import load_vae
from longlive.weights.lora import Lora


@functools.cache
def make_weights() -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in tiny.model().tree.state_dict().items()}  # type: ignore[union-attr]


GEOMETRY_STATED = '{"num_heads": 2, "text_len": 6}'


@functools.cache
def make_weights_bytes() -> bytes:
    return save_tensors(make_weights(), {"geometry": GEOMETRY_STATED, "config": '{"transformer": {"causal_ar": true}}'})


def read_model(path: Path, lora: Path | None = None, **stated: int) -> None:
    """Load a network: every tensor of it is finite."""
    tree, _ = load_model(path, lora=lora, dtype=torch.float32, **stated)
    expect_finite(tree.state_dict(), "a loaded network")


def attack_weights(draw: random.Random, folder: Path) -> None:
    """Weights have no digest: what is read is a network that fits, of finite numbers."""
    path = write_file(folder, "weights.safetensors", mutators.mutate_file(draw, make_weights_bytes(), make_weights()))
    if draw.random() < 0.3:
        expect(len(describe_file(path)) < 20_000, "the description is endless")
    read_model(path)


def attack_folder(draw: random.Random, folder: Path) -> None:
    """A released folder whose descriptions say something else."""
    config = {"_class_name": "CausalWanModel", "num_heads": 2, "text_len": 6, "dim": 24, "num_layers": 3}
    names = sorted(make_weights())
    index = {"metadata": {"total_size": 1}, "weight_map": {}}
    for number in range(2):
        file = f"diffusion_pytorch_model-0000{number + 1}-of-00002.safetensors"
        part = {name: make_weights()[name] for name in names[number::2]}
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
def make_adapter() -> dict[str, Tensor]:
    generator, found = torch.Generator().manual_seed(3), {}
    for name, tensor in make_weights().items():
        if name.startswith("blocks.0.") and name.endswith(".weight") and tensor.dim() == 2:
            module = f"base_model.model.{name.removesuffix('.weight')}"
            rows, columns = tensor.shape
            found[f"{module}.lora_A.weight"] = torch.randn(2, columns, generator=generator)
            found[f"{module}.lora_B.weight"] = torch.randn(rows, 2, generator=generator)
            found[f"{module}.alpha"] = torch.tensor(2.0)
    return found


@functools.cache
def write_weights_file() -> Path:
    return write_file(Path(tempfile.mkdtemp(prefix="fuzz-weights-")), "plain.safetensors", make_weights_bytes())


def attack_lora(draw: random.Random, folder: Path) -> None:
    """An adapter with damage, or another alpha, or factors of other sizes."""
    content = save_tensors(make_adapter(), {"ss_network_alpha": "2", "alpha": "2", "lora_alpha": "2"})
    path = write_file(folder, "lora.safetensors", mutators.mutate_file(draw, content, make_adapter()))
    lora = Lora.read(path)
    expect_finite(list(lora.alphas), "an alpha")
    lora.as_comfy_state()
    read_model(write_weights_file(), path)


@functools.cache
def make_vae() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {name: 0.1 * torch.randn(tensor.shape) for name, tensor in WanVAE(2).state_dict().items()}


@functools.cache
def make_vae_bytes() -> bytes:
    return save_tensors(make_vae())


def attack_vae(draw: random.Random, folder: Path) -> None:
    path = write_file(folder, "vae.safetensors", mutators.mutate_file(draw, make_vae_bytes(), make_vae()))
    expect_finite(load_vae(path).state_dict(), "a loaded VAE")


TARGETS = (
    Target("checkpoints", 1000, attack_weights),
    Target("checkpoint folders", 300, attack_folder),
    Target("LoRAs", 750, attack_lora),
    Target("VAE files", 400, attack_vae),
)
