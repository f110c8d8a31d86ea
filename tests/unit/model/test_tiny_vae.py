"""The tiny VAE decodes as TAEHV is documented, however a video is cut, and refuses other weights."""

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from tiny_vae_weights import DECODER_STAGES, list_tiny_vae_shapes, make_tiny_vae_weights
from torch.utils.flop_counter import FlopCounterMode

from longlive.errors import WeightsError
from longlive.model.tiny_vae import TINY_WARM_UP, LatentSpace, TinyDecoder, TinyVAE
from longlive.model.vae import LATENT_MEAN, LATENT_STD

TOLERANCE = 1e-5
CUTS = [[12], [1] * 12, [3, 3, 3, 3], [3, 3, 1, 5], [2, 0, 10], [0, 4, 8]]


@pytest.fixture(scope="module")
def weights():
    return make_tiny_vae_weights()


@pytest.fixture(scope="module")
def vae(weights):
    return TinyVAE.of_weights(weights, LatentSpace.NETWORK)


@pytest.fixture(scope="module")
def latents():
    return torch.randn(1, 12, 16, 2, 3, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def whole(weights, latents):
    return decode_plainly(weights, latents)


@torch.no_grad()
def decode_plainly(weights, latents_BFCHW):
    """Decode a whole video as the documentation of TAEHV says, frame by frame, and convert its 0..1 to -1..1."""

    def convolve(x_BCHW, name):
        weight = weights[f"{name}.weight"].float()
        return F.conv2d(x_BCHW, weight, weights.get(f"{name}.bias"), padding=weight.shape[-1] // 2)

    frames = [F.relu(convolve(torch.tanh(z_BCHW / 3) * 3, "decoder.1")) for z_BCHW in latents_BFCHW.unbind(1)]
    for first, _, growth, _ in DECODER_STAGES:
        for layer in range(first, first + 3):
            pasts = [torch.zeros_like(frames[0]), *frames[:-1]]
            made = []
            for x_BCHW, past_BCHW in zip(frames, pasts, strict=True):
                y_BCHW = F.relu(convolve(torch.cat([x_BCHW, past_BCHW], 1), f"decoder.{layer}.conv.0"))
                y_BCHW = convolve(F.relu(convolve(y_BCHW, f"decoder.{layer}.conv.2")), f"decoder.{layer}.conv.4")
                made.append(F.relu(y_BCHW + x_BCHW))
            frames = [F.interpolate(x_BCHW, scale_factor=2) for x_BCHW in made] if layer == first + 2 else made
        frames = [part for x in frames for part in convolve(x, f"decoder.{first + 4}.conv").chunk(growth, 1)]
        frames = [convolve(x_BCHW, f"decoder.{first + 5}") for x_BCHW in frames]
    pixels = [convolve(F.relu(x_BCHW), "decoder.22") for x_BCHW in frames]
    return torch.stack(pixels[3:], 1).clamp(0, 1) * 2 - 1


def stream(decoder, latents_BFCHW, lengths):
    return torch.cat([*(decoder.push(piece) for piece in latents_BFCHW.split(lengths, 1)), decoder.flush()], dim=1)


@pytest.mark.parametrize("at_once", [1, 2, 3, 20])
@pytest.mark.parametrize("lengths", CUTS, ids=str)
def test_law_2_a_video_decoded_in_any_cut_is_the_video_decoded_whole(vae, latents, whole, lengths, at_once):
    pixels = stream(TinyDecoder(vae, at_once=at_once), latents, lengths)
    assert pixels.shape == (1, 4 * 12 - 3, 3, 16, 24)
    torch.testing.assert_close(pixels, whole, rtol=0, atol=TOLERANCE)


def test_the_test_sees_wrong_pixels(whole):
    """Most pixels of the random weights are neither black nor white, and frames differ."""
    assert (whole.abs() < 1).float().mean() > 0.9
    assert (whole[:, 1:] - whole[:, :-1]).abs().mean() > 0.01


def test_latents_of_the_vae_are_scaled_by_the_statistics_of_wan(weights, latents):
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (LATENT_MEAN, LATENT_STD))
    pixels = TinyDecoder(TinyVAE.of_weights(weights, LatentSpace.VAE)).push(latents[:, :2])
    expected = decode_plainly(weights, latents[:, :2] * std + mean)
    torch.testing.assert_close(pixels, expected, rtol=0, atol=TOLERANCE)
    assert (pixels - decode_plainly(weights, latents[:, :2])).abs().mean() > 0.01


@pytest.mark.parametrize("block", [1, 2, 3, 5])
def test_a_decoder_that_caught_up_continues_with_the_same_bits(vae, latents, block):
    blocks = latents.split(block, dim=1)
    decoder = TinyDecoder(vae)
    every = [*map(decoder.push, blocks), decoder.flush()]
    for start in {1, len(blocks) // 2, len(blocks) - 1}:
        decoder.catch_up(blocks[:start])
        later = [*map(decoder.push, blocks[start:]), decoder.flush()]
        assert all(torch.equal(a, b) for a, b in zip(later, every[start:], strict=True)), start
    decoder.catch_up([])
    assert torch.equal(decoder.push(blocks[0]), every[0])


def test_pixels_depend_on_eight_latents_before_their_own_and_no_more(vae, latents):
    def decode_after(changed):
        other = latents.clone()
        other[:, changed] += 1
        return TinyDecoder(vae, at_once=1).push(other)[:, -4:]

    pixels, last = decode_after([]), latents.shape[1] - 1
    assert torch.equal(decode_after([last - TINY_WARM_UP - 1]), pixels)
    assert not torch.equal(decode_after([last - TINY_WARM_UP]), pixels)


def test_flush_ends_the_video_so_that_the_next_push_begins_another(vae, latents, whole):
    decoder = TinyDecoder(vae)
    decoder.push(-latents)
    assert decoder.flush().shape == (1, 0, 3, 16, 24)
    assert decoder.push(latents[:, :0]).shape == (1, 0, 3, 16, 24)
    torch.testing.assert_close(decoder.push(latents), whole, rtol=0, atol=TOLERANCE)


def test_a_batch_decodes_as_its_members_do(vae, latents, whole):
    pixels = stream(TinyDecoder(vae), torch.cat([latents.flip(1), latents]), [3, 9])
    torch.testing.assert_close(pixels[1:], whole, rtol=0, atol=TOLERANCE)


def test_a_decoder_takes_its_nine_frames_with_it_and_leaves_latents_alone(vae, latents):
    given, decoder = latents.clone(), TinyDecoder(vae)
    decoder.push(given)
    kept = [weakref.ref(tensor) for tensor in decoder.past.seen.values()]
    assert torch.equal(given, latents)
    assert len(kept) == 9
    del decoder
    gc.collect()
    assert not any(reference() is not None for reference in kept)


def test_half_precision_weights_give_the_same_picture(latents, whole):
    vae = TinyVAE.of_weights(make_tiny_vae_weights(torch.float16), LatentSpace.NETWORK, dtype=torch.bfloat16)
    pixels = TinyDecoder(vae).push(latents)
    assert pixels.dtype == torch.float32
    assert (pixels - whole).abs().mean() < 0.02


def test_a_file_of_float16_computes_in_float32_if_asked(latents):
    weights = make_tiny_vae_weights(torch.float16)
    vae = TinyVAE.of_weights(weights, LatentSpace.NETWORK, dtype=torch.float32)
    expected = decode_plainly({name: weight.float() for name, weight in weights.items()}, latents)
    torch.testing.assert_close(TinyDecoder(vae).push(latents), expected, rtol=0, atol=TOLERANCE)


def test_the_identity_names_weights_space_and_pieces(weights):
    def identify(changed=None, space=LatentSpace.VAE, at_once=3):
        return TinyDecoder(TinyVAE.of_weights(weights | (changed or {}), space), at_once=at_once).identity

    others = [
        identify({"decoder.22.bias": torch.zeros(3)}),
        identify(space=LatentSpace.NETWORK),
        identify(at_once=1),
    ]
    assert identify() == identify({"encoder.17.bias": torch.zeros(16)})
    assert len({identify(), *others}) == 4


def test_weights_too_large_for_their_dtype_are_refused(weights):
    large = weights | {"decoder.22.bias": torch.full((3,), 1e5)}
    with pytest.raises(WeightsError, match=r"in 'decoder\.22\.bias' \(torch\.float32, as torch\.float16\)"):
        TinyVAE.of_weights(large, LatentSpace.VAE, dtype=torch.float16)


def test_weights_lie_with_their_channels_together(vae):
    """So a GPU converts none of them on its way."""
    weights = [weight for weight in vae.parameters() if weight.dim() == 4]
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)


def test_the_layout_is_the_released_one(weights):
    assert len(list_tiny_vae_shapes()) == 128
    assert sum(torch.Size(shape).numel() for shape in list_tiny_vae_shapes().values()) == 9_844_611 + 1_470_928
    state = TinyVAE(LatentSpace.VAE, device="meta").state_dict()
    expected = {name: shape for name, shape in list_tiny_vae_shapes().items() if name.startswith("decoder.")}
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == expected


def test_a_block_costs_1_6_teraflop_and_carries_67_megabytes():
    decoder = TinyDecoder(TinyVAE(LatentSpace.VAE, device="meta", dtype=torch.bfloat16))
    with FlopCounterMode(display=False) as counter:
        decoder.push(torch.empty(1, 3, 16, 60, 104, device="meta", dtype=torch.bfloat16))
    assert 1.5e12 < counter.get_total_flops() <= 1.6e12
    assert round(sum(tensor.nbytes for tensor in decoder.past.seen.values()) / 1e6) == 67


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: {}, "found no tensors"),
        (lambda w: {"blocks.0.ffn.0.weight": torch.zeros(1)}, "not a tiny VAE: found 1 tensors such as 'blocks"),
        (
            lambda w: w | {"decoder.1.weight": torch.zeros(256, 48, 3, 3)},
            r"48 latent channels .* expected Wan2\.1's 16",
        ),
        (lambda w: w | {"decoder.1.weight": torch.tensor(1.0)}, "1 latent channels"),
        (lambda w: {k: x for k, x in w.items() if k != "decoder.8.weight"}, r"lacks 1 of its 64 tensors: 'decoder\.8"),
        (lambda w: w | {"decoder.23.weight": torch.zeros(1)}, r"1 tensors too many: 'decoder\.23"),
        (lambda w: w | {"decoder.22.bias": torch.zeros(12)}, r"'decoder\.22\.bias' has shape \[12\], expected \[3\]"),
        (lambda w: w | {"decoder.22.bias": torch.full((3,), float("nan"))}, r"NaN, .*in 'decoder\.22\.bias'"),
        (lambda w: w | {"decoder.22.bias": torch.ones(3, dtype=torch.int64)}, r"whole numbers in 'decoder\.22\.bias'"),
        (lambda w: w | {"decoder.22.bias": torch.ones(3, dtype=torch.complex64)}, r"in 'decoder\.22\.bias'"),
    ],
    ids="nothing model channels flat missing leftover shape NaN whole complex".split(),
)
def test_weights_of_anything_else_are_refused_with_the_file_to_use(weights, change, message):
    with pytest.raises(WeightsError, match=message + r".*use taew2_1\.safetensors or lighttaew2_1\.safetensors"):
        TinyVAE.of_weights(change(weights), LatentSpace.VAE)
