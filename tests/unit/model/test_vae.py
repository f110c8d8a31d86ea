"""The VAE gives the reference's pixels and latents, however a video is cut, and refuses other weights."""

import gc
import json
import weakref
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch.utils._python_dispatch import TorchDispatchMode

from longlive.errors import WeightsError
from longlive.model import vae_layers
from longlive.model.vae import WanVAE, denormalise, normalise
from longlive.model.vae_layers import CausalConv, Past
from longlive.model.vae_streams import StreamingDecoder, StreamingEncoder, decode, encode

DECODE_TOLERANCE, ENCODE_TOLERANCE = 2e-5, 1e-5  # tests/reference/README.md
GOLDEN = Path(__file__).parents[2] / "reference" / "vae.safetensors"


@pytest.fixture(scope="module")
def golden():
    with safe_open(GOLDEN, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}


@pytest.fixture(scope="module")
def weights(golden):
    return {key.removeprefix("sd."): tensor for key, tensor in golden.items() if key.startswith("sd.")}


@pytest.fixture(scope="module")
def vae(weights):
    return WanVAE.of_weights(weights)


@pytest.fixture(scope="module")
def pixels_BFCHW(golden):
    return golden["in.pixel"].transpose(1, 2)


def stream(coder, video_BFCHW, lengths):
    return torch.cat([*(coder.push(piece) for piece in video_BFCHW.split(lengths, dim=1)), coder.flush()], dim=1)


CUTS = [[7], [1] * 7, [3, 3, 1], [2, 0, 5], [0, 4, 3], [6, 1]]


@pytest.mark.parametrize("lengths", CUTS, ids=str)
def test_law_2_latent_by_latent_a_video_decodes_to_the_same_bits_in_any_cut(vae, golden, lengths):
    latents = golden["in.latent"]
    whole = StreamingDecoder(vae, at_once=1).push(latents)
    assert torch.equal(stream(StreamingDecoder(vae, at_once=1), latents, lengths), whole)


@pytest.mark.parametrize("at_once", [1, 2, 3, 20])
@pytest.mark.parametrize("lengths", CUTS, ids=str)
def test_law_2_a_video_decoded_in_any_cut_is_the_video_decoded_whole(vae, golden, lengths, at_once):
    latents = golden["in.latent"]
    together = stream(StreamingDecoder(vae, at_once=at_once), latents, lengths)
    torch.testing.assert_close(together, decode(vae, latents), rtol=0, atol=DECODE_TOLERANCE)


@pytest.mark.parametrize("lengths", [[9], [1] * 9, [4, 4, 1], [2, 0, 7], [8, 1]], ids=str)
@pytest.mark.parametrize("at_once", [1, 2])
def test_a_video_encoded_in_any_cut_is_the_video_encoded_whole(vae, pixels_BFCHW, lengths, at_once):
    latents = stream(StreamingEncoder(vae, at_once=at_once), pixels_BFCHW, lengths)
    torch.testing.assert_close(latents, encode(vae, pixels_BFCHW), rtol=0, atol=ENCODE_TOLERANCE)


def test_a_batch_decodes_as_its_members_do(vae, golden):
    latents = golden["in.latent"].roll(1, dims=1)
    both = decode(vae, torch.cat([golden["in.latent"], latents]))
    torch.testing.assert_close(both[1:], decode(vae, latents), rtol=0, atol=DECODE_TOLERANCE)


def test_decode_gives_the_reference_pixels(vae, golden):
    expected = golden["out.decode_raw"].clamp(-1, 1)
    torch.testing.assert_close(decode(vae, golden["in.latent"]), expected, rtol=0, atol=DECODE_TOLERANCE)


def test_a_stream_gives_the_reference_pixel_frames_per_push(vae, golden):
    decoder = StreamingDecoder(vae)
    pieces = golden["in.latent"].split(golden["in.stream_slices"].tolist(), dim=1)
    assert [decoder.push(piece).shape[1] for piece in pieces] == golden["out.stream_lengths"].tolist()


def test_flush_ends_the_video_so_that_the_next_push_begins_another(vae, golden):
    with safe_open(GOLDEN, "pt") as file:
        chunk = json.loads(file.metadata()["chunk"])
    decoder, tails = StreamingDecoder(vae), []
    for piece in golden["in.latent"].split(chunk, dim=1):
        tails.append(torch.cat([decoder.push(piece), decoder.flush()], dim=1))
    tail = torch.cat(tails[1:], dim=1)
    torch.testing.assert_close(tail, golden["out.decode_chunked_tail"], rtol=0, atol=DECODE_TOLERANCE)


@pytest.fixture
def channels_last(monkeypatch):
    """Let the CPU work in the layout of a GPU."""
    monkeypatch.setattr(vae_layers, "has_channels_last", lambda device: True)


@pytest.mark.usefixtures("channels_last")
@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_in_the_layout_of_a_gpu_the_reference_pixels_and_latents_come_out(weights, golden, pixels_BFCHW, at_once):
    vae = WanVAE.of_weights(weights)
    pixels = StreamingDecoder(vae, at_once=at_once).push(golden["in.latent"])
    torch.testing.assert_close(pixels, golden["out.decode_raw"].clamp(-1, 1), rtol=0, atol=DECODE_TOLERANCE)
    latents = StreamingEncoder(vae, at_once=at_once).push(pixels_BFCHW)
    torch.testing.assert_close(latents, golden["out.encode.9"], rtol=0, atol=ENCODE_TOLERANCE)


class CopyCounter(TorchDispatchMode):
    """Counts the values that are copied from one tensor to another as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.__name__.split(".")[0] in ("copy_", "clone", "cat", "constant_pad_nd", "_to_copy"):
            self.count += out.numel()
        return out


@pytest.mark.usefixtures("channels_last")
def test_in_the_layout_of_a_gpu_little_but_the_kept_frames_is_copied():
    vae, calls = WanVAE.of_weights(WanVAE(4).state_dict()), []
    for layer in vae.decoder.modules():
        if isinstance(layer, CausalConv):
            layer.register_forward_hook(lambda layer, given, made: calls.append((layer, *given, made)))
    past = Past()
    with torch.no_grad():
        vae.decode_next(torch.zeros(1, 1, 16, 4, 6), past)
        calls.clear()
        with CopyCounter() as copies:
            vae.decode_next(torch.zeros(1, 3, 16, 4, 6), past)
    assert len(calls) == 32
    assert all(x.is_contiguous(memory_format=torch.channels_last_3d) for _, *given in calls for x in given)
    kept = sum(frames.numel() for frames in past.seen.values())
    doubled = sum(x.numel() for layer, *given in calls if layer.kernel_size == (3, 1, 1) for x in given)
    latents = calls[0][1].numel()
    assert copies.count <= 2 * kept + doubled + latents


@pytest.mark.parametrize(
    ("coder", "shape"), [(StreamingDecoder, (1, 1, 16, 4, 6)), (StreamingEncoder, (1, 1, 3, 32, 48))]
)
def test_the_first_frame_is_not_multiplied_with_the_zeros_before_it(coder, shape):
    vae, frames = WanVAE.of_weights(WanVAE(4).state_dict()), []
    for layer in vae.modules():
        if isinstance(layer, CausalConv):
            layer.register_forward_hook(lambda layer, given, made: frames.append((given[0].shape[2], made.shape[2])))
    stream = coder(vae)
    stream.push(torch.zeros(shape))
    assert len(frames) > 20
    assert set(frames) == {(1, 1)}
    # the second pass reads the zero before the first frame
    assert {kept.shape[2] for layer, kept in stream.past.seen.items() if isinstance(layer, CausalConv)} == {2}


@pytest.mark.parametrize("num_frames", [1, 9])
def test_encode_gives_the_reference_latents(vae, golden, pixels_BFCHW, num_frames):
    latents = encode(vae, pixels_BFCHW[:, :num_frames])
    torch.testing.assert_close(latents, golden[f"out.encode.{num_frames}"], rtol=0, atol=ENCODE_TOLERANCE)


def test_pixel_frames_that_make_no_latent_are_dropped_at_the_end(vae, golden, pixels_BFCHW):
    latents = encode(vae, torch.cat([pixels_BFCHW, pixels_BFCHW[:, :3]], dim=1))
    torch.testing.assert_close(latents, golden["out.encode.9"], rtol=0, atol=ENCODE_TOLERANCE)


def test_two_decoders_of_one_vae_do_not_meet(vae, golden):
    latents = golden["in.latent"]
    one, other = StreamingDecoder(vae), StreamingDecoder(vae)
    pixels = []
    for frame in latents.split(1, dim=1):
        pixels.append(one.push(frame))
        other.push(-frame)
    torch.testing.assert_close(torch.cat(pixels, dim=1), decode(vae, latents), rtol=0, atol=DECODE_TOLERANCE)


def test_a_decoder_takes_its_memory_with_it(vae, golden):
    decoder = StreamingDecoder(vae)
    decoder.push(golden["in.latent"][:, :2])
    kept = [weakref.ref(tensor) for tensor in decoder.past.seen.values()]
    assert len(kept) == 32  # causal convolutions of the decoder
    del decoder
    gc.collect()
    assert not any(reference() is not None for reference in kept)


def test_a_push_leaves_its_latents_as_they_were(vae, golden):
    latents = golden["in.latent"].clone()
    decode(vae, latents)
    assert torch.equal(latents, golden["in.latent"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_normalising_divides_by_a_reciprocal_rounded_in_the_latents_own_dtype(dtype):
    z = torch.randn(1, 2, 16, 3, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    mean, std = torch.tensor(-0.0715, dtype=dtype), torch.tensor(2.1526, dtype=dtype)
    assert torch.equal(normalise(z)[:, :, 9], (z[:, :, 9] - mean) * (1 / std))
    assert torch.equal(denormalise(z)[:, :, 9], z[:, :, 9] / (1 / std) + mean)


def test_half_precision_weights_give_the_same_picture(weights, golden):
    pixels = decode(WanVAE.of_weights(weights, dtype=torch.bfloat16), golden["in.latent"])
    assert pixels.dtype == torch.float32
    assert (pixels - golden["out.decode_raw"].clamp(-1, 1)).abs().mean() < 0.02


def test_any_base_width_is_read_from_the_weights():
    weights = WanVAE(5).state_dict()
    vae = WanVAE.of_weights(weights)
    assert {key: tensor.shape for key, tensor in vae.state_dict().items()} == {k: w.shape for k, w in weights.items()}
    assert decode(vae, torch.zeros(1, 2, 16, 1, 3)).shape == (1, 5, 3, 8, 24)


def test_the_released_vae_has_194_tensors_and_126_892_531_parameters():
    parameters = WanVAE(96, device="meta").state_dict().values()
    assert len(parameters) == 194
    assert sum(parameter.numel() for parameter in parameters) == 126_892_531


def test_pixels_that_do_not_fill_cells_are_refused(vae):
    with pytest.raises(ValueError, match="24 x 17; width and height must be multiples of 8"):
        encode(vae, torch.zeros(1, 1, 3, 17, 24))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: {}, "found no tensors"),
        (lambda w: {"blocks.0.ffn.0.weight": torch.zeros(1)}, r"not the Wan2\.1 VAE: found 1 tensors such as 'blocks"),
        (lambda w: w | {"decoder.up_blocks.0.resnets.0.conv1.weight": torch.zeros(1)}, "key names of diffusers"),
        (lambda w: w | {"conv2.weight": torch.zeros(48, 48, 1, 1, 1)}, r"48 latent channels .* expected Wan2\.1's 16"),
        (lambda w: {k: t for k, t in w.items() if k != "conv1.bias"}, r"lacks 1 of its 194 tensors: 'conv1\.bias'"),
        (lambda w: w | {"decoder.extra": torch.zeros(1)}, r"1 tensors too many: 'decoder\.extra'"),
        (lambda w: w | {"conv1.bias": torch.zeros(31)}, r"'conv1\.bias' has shape \[31\], expected \[32\]"),
        (lambda w: w | {"decoder.head.0.gamma": torch.zeros(10**6, 0)}, "is 1000000 wide, expected 1 to 4096"),
        (lambda w: w | {"decoder.head.0.gamma": torch.zeros(0)}, "is 0 wide"),
        (lambda w: w | {"conv2.weight": torch.tensor(1.0)}, "has 1 latent channels"),
        (lambda w: w | {"conv1.bias": torch.full((32,), float("nan"))}, r"NaN, infinity .*in 'conv1\.bias'"),
        (lambda w: w | {"conv1.bias": torch.full((32,), float("inf"))}, r"NaN, infinity .*in 'conv1\.bias'"),
        (lambda w: w | {"conv1.bias": torch.ones(32, dtype=torch.int64)}, r"whole numbers in 'conv1\.bias'"),
        (lambda w: w | {"\x1b[2J" * 10**6: torch.zeros(1)}, r"1 tensors too many: '[^\x1b]{1,2000}\.\.\.'"),
    ],
    ids=[
        *("nothing", "another model", "diffusers", "Wan2.2", "missing key", "leftover key", "wrong shape"),
        *("wide", "no width", "no shape", "NaN", "infinity", "whole numbers", "odd name"),
    ],
)
def test_weights_of_anything_else_are_refused_with_the_file_to_use(weights, change, message):
    with pytest.raises(WeightsError, match=message + r".*use Wan2\.1_VAE\.pth or wan_2\.1_vae\.safetensors"):
        WanVAE.of_weights(change(weights))


def test_weights_too_large_for_their_dtype_are_refused(weights):
    large = weights | {"conv1.bias": torch.full((32,), 1e5)}
    WanVAE.of_weights(large)
    with pytest.raises(WeightsError, match=r"in 'conv1\.bias' \(torch\.float32, as torch\.float16\)"):
        WanVAE.of_weights(large, dtype=torch.float16)
