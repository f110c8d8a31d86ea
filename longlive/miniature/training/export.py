"""Exports trained weights to the shipped files: released names, Wan's latent statistics, bf16."""

from pathlib import Path

import torch
from torch import Tensor

from ...model.vae import LATENT_MEAN, LATENT_STD, WanVAE
from ...model.wan import WanModel
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
