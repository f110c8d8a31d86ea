"""The VAE from files of either naming; diffusers' own class is the oracle."""

import json

import torch
from safetensors.torch import save_file

from longlive.model.convolution import use_fast_convolutions
from longlive.model.vae import LATENT_MEAN, LATENT_STD
from longlive.model.vae_streams import decode, encode
from longlive.weights.load_vae import load_vae


def test_a_diffusers_vae_decodes_and_encodes_as_diffusers_does(tmp_path):
    from diffusers import AutoencoderKLWan

    torch.manual_seed(0)
    theirs = AutoencoderKLWan(base_dim=4).eval()
    theirs.save_pretrained(tmp_path / "vae")
    ours = load_vae(tmp_path / "vae")

    latents, pixels = torch.randn(1, 4, 16, 4, 6), torch.rand(1, 9, 3, 32, 48) * 2 - 1
    mean, std = (torch.tensor(x).view(1, 1, 16, 1, 1) for x in (LATENT_MEAN, LATENT_STD))
    with torch.no_grad(), use_fast_convolutions(theirs.device):
        decoded = theirs.decode((latents * std + mean).transpose(1, 2)).sample.transpose(1, 2)
        encoded = (theirs.encode(pixels.transpose(1, 2)).latent_dist.mode().transpose(1, 2) - mean) / std
    torch.testing.assert_close(decode(ours, latents), decoded.clamp(-1, 1), rtol=0, atol=2e-5)
    torch.testing.assert_close(encode(ours, pixels), encoded, rtol=0, atol=2e-5)


def test_released_names_load_as_they_are(tmp_path):
    from safetensors.torch import load_file

    recorded = load_file("tests/reference/vae.safetensors")
    weights = {name.removeprefix("sd."): x for name, x in recorded.items() if name.startswith("sd.")}
    save_file(weights, tmp_path / "vae.safetensors")
    assert json.dumps(sorted(load_vae(tmp_path / "vae.safetensors").state_dict())) == json.dumps(sorted(weights))
