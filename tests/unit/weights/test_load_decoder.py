"""A decoder from a file: the whole VAE or a tiny one, of either suffix; names say which latents a tiny one takes."""

import pytest
import torch
from safetensors.torch import load_file
from tiny_vae_weights import make_tiny_vae_weights
from tiny_weights import REFERENCE, add_prefix

from longlive.errors import ConfigError, WeightsError
from longlive.model.tiny_vae import LatentSpace, TinyDecoder, TinyVAE
from longlive.model.vae_streams import StreamingDecoder
from longlive.weights.describe import describe_file
from longlive.weights.load_decoder import find_latent_space, load_decoder


@pytest.fixture(scope="module")
def weights():
    return make_tiny_vae_weights(torch.float16)


NAMES = [
    ("taew2_1.safetensors", LatentSpace.NETWORK),
    ("taew2_1.pth", LatentSpace.NETWORK),
    ("TAEW2_1_fp16.safetensors", LatentSpace.NETWORK),
    ("lighttaew2_1.safetensors", LatentSpace.VAE),
    ("lighttaew2_1.pth", LatentSpace.VAE),
]


@pytest.mark.parametrize(("name", "space"), NAMES, ids=[name for name, _ in NAMES])
def test_the_name_of_a_tiny_vae_says_which_latents_it_takes(name, space):
    assert find_latent_space(name) is space


@pytest.mark.parametrize("name", ["taew2_1.safetensors", "lighttaew2_1.pth"])
def test_a_tiny_vae_decodes_alike_from_either_suffix(save, weights, name):
    decoder = load_decoder(save(name, weights), dtype=torch.float32)
    latents = torch.randn(1, 2, 16, 2, 3, generator=torch.Generator().manual_seed(1))
    expected = TinyVAE.of_weights(weights, dict(NAMES)[name], dtype=torch.float32)
    assert isinstance(decoder, TinyDecoder)
    assert decoder.identity == TinyDecoder(expected).identity
    assert torch.equal(decoder.push(latents), TinyDecoder(expected).push(latents))


def test_a_file_of_another_name_needs_the_latent_space(save, weights):
    path = save("tiny.safetensors", weights)
    with pytest.raises(WeightsError, match=r"tiny\.safetensors is a tiny VAE .*; give the latent space: network"):
        load_decoder(path)
    assert isinstance(decoder := load_decoder(path, space=LatentSpace.VAE), TinyDecoder)
    assert decoder.vae.space is LatentSpace.VAE


def test_a_latent_space_overrides_the_name(save, weights):
    decoder = load_decoder(save("taew2_1.safetensors", weights), space=LatentSpace.VAE)
    assert isinstance(decoder, TinyDecoder)
    assert decoder.vae.space is LatentSpace.VAE


def test_a_file_of_the_whole_vae_gives_the_whole_decoder(save):
    recorded = load_file(REFERENCE / "vae.safetensors")
    path = save("vae.safetensors", {key[3:]: tensor for key, tensor in recorded.items() if key.startswith("sd.")})
    assert isinstance(load_decoder(path), StreamingDecoder)
    with pytest.raises(ConfigError, match=r"vae\.safetensors is not a tiny VAE; leave the latent space out"):
        load_decoder(path, space=LatentSpace.VAE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: {key: x for key, x in w.items() if key != "decoder.20.weight"}, "lacks 1 of its 64 tensors"),
        (lambda w: w | {"decoder.7.conv.weight": torch.zeros(512, 256, 1, 1)}, r"expected \[256, 256, 1, 1\]"),
        (lambda w: w | {"decoder.3.conv.0.bias": torch.full((256,), torch.nan)}, "NaN, infinity"),
        (lambda w: w | {"decoder.1.weight": torch.zeros(256, 48, 3, 3)}, "48 latent channels"),
        (lambda w: {"conv.weight": torch.zeros(3, 3)}, r"not the Wan2\.1 VAE: found 1 tensors"),
    ],
    ids="missing shape NaN channels other".split(),
)
@pytest.mark.parametrize("name", ["taew2_1.safetensors", "taew2_1.pth"])
def test_a_bad_file_is_refused_with_the_cure(save, weights, change, message, name):
    with pytest.raises(WeightsError, match=f"{message}.*; use "):
        load_decoder(save(name, change(weights)))


def test_a_damaged_file_is_refused(save):
    with pytest.raises(WeightsError, match="truncated or damaged"):
        load_decoder(save("taew2_1.safetensors", (100).to_bytes(8, "little") + b"{" * 50))


def test_prefixes_of_trainers_are_known_and_the_file_is_described(save, weights):
    path = save("taew2_1.safetensors", add_prefix(weights, "model."))
    assert isinstance(load_decoder(path), TinyDecoder)
    assert "kind      a tiny VAE (TAEHV)" in describe_file(path)
