"""Exports trained weights to the shipped files: released names, Wan's latent statistics, bf16."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ...model.vae import LATENT_MEAN, LATENT_STD, WanVAE
from ...model.wan import WanModel
from ...weights.lora import FactorPair, Lora
from ...weights.tensor_file import write_tensor_file


def fold_statistics(vae: WanVAE, mean: Tensor, std: Tensor) -> None:
    """Change a VAE in place so that latents of `mean` and `std` [C] get the statistics of Wan's latents.

    The change is exact, because both 1 x 1 x 1 convolutions are affine by channel: the encoder's last one scales and
    shifts its output, the decoder's first one inverts that. Programs that normalise Wan's latents then get mean 0 and
    deviation 1.
    """
    wan_mean, wan_std = torch.tensor(LATENT_MEAN), torch.tensor(LATENT_STD)
    gain = wan_std / std
    channels = len(mean)
    encoder_bias, decoder_bias = vae.get_parameter("conv1.bias"), vae.get_parameter("conv2.bias")
    with torch.no_grad():
        vae.conv1.weight[:channels] *= gain.view(-1, 1, 1, 1, 1)
        encoder_bias[:channels] = (encoder_bias[:channels] - mean) * gain + wan_mean
        decoder_bias += vae.conv2.weight[:, :, 0, 0, 0] @ (mean - wan_mean / gain)
        vae.conv2.weight /= gain.view(1, -1, 1, 1, 1)


def save_weights(module: WanModel | WanVAE, path: Path, about: dict[str, str]) -> None:
    """Write a module's weights in bf16."""
    weights = {name: weight.detach().to(torch.bfloat16).contiguous() for name, weight in module.state_dict().items()}
    write_tensor_file(path, weights, about)


def save_adapter(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], size: int, path: Path, about: dict[str, str]
) -> float:
    """Write what a training changed in matrices, `after` less `before`, as an adapter of about `size` numbers in bf16.

    It keeps the singular directions that hold most of the change for their size, whichever matrix they are of. Returns
    what is left out, as a ratio of root mean squares.
    """
    changes = {name: (after[name] - before[name]).detach().float() for name in after}
    found = {name: torch.linalg.svd(change, full_matrices=False) for name, change in changes.items() if change.any()}
    assert found, "nothing changed"
    gains = torch.cat([s.square() / (len(u) + v.shape[1]) for u, s, v in found.values()])
    costs = torch.cat([torch.full_like(s, len(u) + v.shape[1]) for u, s, v in found.values()])
    order = gains.argsort(descending=True)
    least = gains[order[costs[order].cumsum(0) <= size]].min()
    pairs, left = {}, 0.0
    for name, (u, s, v) in found.items():
        rank = max(1, int((s.square() / (len(u) + v.shape[1]) >= least).sum()))
        root = s[:rank].sqrt()
        pairs[name.removesuffix(".weight")] = FactorPair(root[:, None] * v[:rank], u[:, :rank] * root, float(rank))
        left += s[rank:].square().sum().item()
    state = Lora(source="training", pairs=pairs).as_comfy_state()
    write_tensor_file(path, {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in state.items()}, about)
    return (left / sum(s.square().sum().item() for _, s, _ in found.values())) ** 0.5
