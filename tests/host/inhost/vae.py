"""Checks that our streams over the host's VAE give the pixels and latents of the host itself; run inside a host."""

import itertools

import comfy.latent_formats
import comfy.model_management
import comfy.sd
import pytest
import torch
from comfyui_longlive.longlive.errors import VideoError, WeightsError
from comfyui_longlive.longlive.model.vae import WanVAE
from comfyui_longlive.nodes.host import fallback_decoder
from comfyui_longlive.nodes.host import vae as host_vae

WIDTH, FRAMES, ROWS, COLUMNS = 4, 10, 3, 5  # an odd latent is left over in the end
CUTS = ([10], [1] * 10, [3, 3, 3, 1], [2, 0, 5, 3], [0, 4, 6])
PIXEL_CUTS = (
    [1],
    [4],
    [5],
    [9],
    [13],
    [17],
    [20],
    [21],
    [1] * 21,
    [12] * 2,
    [0, 3, 0, 10, 8],
    [8, 8, 7],
    [2, 3],
    [4, 9],
)


def check_host_vae(dtype: torch.dtype = torch.float32, tolerance: float = 1e-5) -> dict[str, float]:
    """Raise unless every cut of a video gives the pixels of `VAE.decode`; return what differed at most, per cut."""
    vae = comfy.sd.VAE(sd=make_random_weights(), dtype=dtype)
    latents_BFCHW = torch.randn(1, FRAMES, 16, ROWS, COLUMNS, generator=torch.Generator().manual_seed(1))
    z_BCFHW = comfy.latent_formats.Wan21().process_out(latents_BFCHW.transpose(1, 2))
    whole_BFCHW = vae.decode(z_BCFHW).permute(0, 1, 4, 2, 3).float() * 2 - 1

    state = torch.get_rng_state()
    decoder = host_vae.create_decoder(vae)
    assert torch.equal(torch.get_rng_state(), state), "the trial drew from the global random state"
    assert isinstance(decoder, host_vae.HostDecoder), decoder
    differences = {"passes of": decoder.at_once}
    for lengths in CUTS:
        pixels = [decoder.push(piece) for piece in latents_BFCHW.split(lengths, dim=1)]
        pixels_BFCHW = torch.cat([*pixels, decoder.flush()], dim=1)
        assert pixels_BFCHW.shape == whole_BFCHW.shape, (pixels_BFCHW.shape, whole_BFCHW.shape)
        difference = (pixels_BFCHW - whole_BFCHW).abs().max().item()
        assert difference <= tolerance, f"cut into {lengths}: {difference}"
        differences[str(lengths)] = difference
        assert_nothing_is_kept(decoder)
    return differences


def check_host_vae_encodes(dtype: torch.dtype = torch.float32, tolerance: float = 1e-5) -> dict[str, float]:
    """Raise unless every cut of a video gives the latents of `VAE.encode`; return what differed at most, per cut."""
    vae = comfy.sd.VAE(sd=make_random_weights(), dtype=dtype)
    state = torch.get_rng_state()
    encoder = host_vae.create_encoder(vae)
    assert torch.equal(torch.get_rng_state(), state), "the trial drew from the global random state"
    assert isinstance(encoder, host_vae.HostEncoder), encoder
    assert encoder.flush().shape[1] == 0, "a video without frames has no latents"
    differences = {"passes of": encoder.at_once}
    for lengths in PIXEL_CUTS:
        shape = 1, sum(lengths), 3, 8 * ROWS, 8 * COLUMNS
        pixels_BFCHW = torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 2 - 1
        z_BCFHW = vae.encode(pixels_BFCHW[0].movedim(1, -1) / 2 + 0.5).float()
        whole_BFCHW = comfy.latent_formats.Wan21().process_in(z_BCFHW).transpose(1, 2)

        latents = [encoder.push(piece) for piece in pixels_BFCHW.split(lengths, dim=1)]
        latents_BFCHW = torch.cat([*latents, encoder.flush()], dim=1)
        assert latents_BFCHW.shape == whole_BFCHW.shape, (lengths, latents_BFCHW.shape, whole_BFCHW.shape)
        assert latents_BFCHW.dtype == torch.float32
        difference = (latents_BFCHW - whole_BFCHW).abs().max().item()
        assert difference <= tolerance, f"cut into {lengths}: {difference}"
        differences[str(lengths)] = difference
        assert_nothing_is_kept(encoder)
    with pytest.raises(ValueError, match="48 x 20; width and height must be multiples of 8"):
        encoder.push(torch.zeros(1, 1, 3, 20, 48))
    return differences


def check_convolutions_are_fast() -> None:
    """Small float32 convolutions of the host's network go to oneDNN, too, in our passes."""
    decoder = host_vae.create_decoder(comfy.sd.VAE(sd=make_random_weights(), dtype=torch.float32))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        decoder.push(torch.zeros(1, FRAMES, 16, ROWS, COLUMNS))
    kernels = {event.key for event in profile.key_averages()}
    assert "aten::mkldnn_convolution" in kernels
    assert not [kernel for kernel in kernels if "slow_conv" in kernel]


def check_catching_up() -> None:
    """Raise unless a decoder that caught up gives the same bits as one that decoded everything."""
    vae = comfy.sd.VAE(sd=make_random_weights())
    for block in (3, 1):
        shape = 1, 48, 16, ROWS, COLUMNS
        blocks = torch.randn(shape, generator=torch.Generator().manual_seed(1)).split(block, dim=1)
        for decoder in (host_vae.create_decoder(vae), host_vae.StreamingDecoder(host_vae.copy_vae(vae))):
            whole = [decoder.push(piece) for piece in blocks] + [decoder.flush()]
            for start in (1, len(blocks) // 2, len(blocks) - 1):
                decoder.catch_up(blocks[:start])
                more = [decoder.push(piece) for piece in blocks[start:]] + [decoder.flush()]
                equal = all(torch.equal(a, b) for a, b in zip(more, whole[start:], strict=True))
                assert equal, f"{type(decoder).__name__}, blocks of {block}, from block {start}"
                assert_nothing_is_kept(decoder)


def check_out_of_memory() -> dict[str, float]:
    """Raise unless decoding continues after memory ran out at any pass; return differences from the host's pixels."""
    vae = comfy.sd.VAE(sd=make_random_weights())
    blocks = torch.randn(1, 15, 16, 8, 8, generator=torch.Generator().manual_seed(1)).split(3, dim=1)
    decoder = host_vae.create_decoder(vae)
    whole = torch.cat([*map(decoder.push, blocks), decoder.flush()], dim=1)
    differences = {}
    for way in ("smaller passes", "tiles"):
        for fails_at in (1, 2, 4):
            with pytest.MonkeyPatch.context() as patch:
                saving = fallback_decoder.FallbackDecoder(vae)
                fail_at(patch, saving.decoder, "_network", fails_at)
                if way == "tiles":
                    patch.setattr(fallback_decoder, "copy_vae", run_short_of_memory(host_vae.copy_vae))
                    patch.setattr(fallback_decoder.TiledDecoder.__init__, "__kwdefaults__", {"tile": 6, "overlap": 4})
                pixels = torch.cat([*map(saving.push, blocks), saving.flush()], dim=1)
            assert isinstance(
                saving.decoder, fallback_decoder.TiledDecoder if way == "tiles" else host_vae.StreamingDecoder
            )
            assert pixels.shape == whole.shape, (way, fails_at, pixels.shape)
            difference = (pixels - whole).abs()
            differences[f"{way} from pass {fails_at}: most"] = float(difference.max())
            differences[f"{way} from pass {fails_at}: mean"] = float(difference.mean())
            assert differences[f"{way} from pass {fails_at}: most"] < 1e-4 or way == "tiles", differences
    with pytest.MonkeyPatch.context() as patch:
        saving = fallback_decoder.FallbackDecoder(vae)
        fail_at(patch, saving.decoder, "_network", 1)
        patch.setattr(host_vae.StreamingDecoder, "push", fail)
        with pytest.raises(VideoError, match=r"Session to Latent and VAE Decode \(Tiled\)"):
            saving.push(blocks[0])
    return differences


def fail(*_, **__):
    raise comfy.model_management.OOM_EXCEPTION("out of memory, by a test")


def fail_at(patch: pytest.MonkeyPatch, decoder: object, name: str, number: int) -> None:
    """Make call `number` of a method run out of memory."""
    method, calls = getattr(decoder, name), itertools.count(1)
    patch.setattr(decoder, name, lambda *a: fail() if next(calls) == number else method(*a))


def run_short_of_memory(copy_vae):
    """Let the first call run out of memory, and no other."""
    calls = itertools.count(1)
    return lambda vae: fail() if next(calls) == 1 else copy_vae(vae)


def assert_nothing_is_kept(stream) -> None:
    if isinstance(stream, host_vae.StreamingDecoder):
        assert not stream.past.seen
        return
    assert stream.waiting_BFCHW is None
    assert not any(torch.is_tensor(slot) for slot in stream.past)


def check_host_vae_of_an_unknown_cut() -> None:
    """Raise unless our code replaces a host that cuts video in an unknown way, and an unknown VAE is refused."""
    vae = comfy.sd.VAE(sd=make_random_weights())
    network = type(vae.first_stage_model)
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(host_vae.HostStream, "_run")
        decoder = host_vae.create_decoder(vae)
        assert isinstance(decoder, host_vae.StreamingDecoder), decoder
        encoder = host_vae.create_encoder(vae)
        assert isinstance(encoder, host_vae.StreamingEncoder), encoder
        patch.setattr(network, "decode", lambda self, z: torch.zeros(1, 3, 17, 32, 32))
        with pytest.raises(WeightsError, match="update LongLive, or decode with"):
            host_vae.create_decoder(vae)
        patch.setattr(network, "encode", lambda self, x: torch.zeros(1, 16, 4, 4, 4))
        with pytest.raises(WeightsError, match=r"update LongLive$"):
            host_vae.create_encoder(vae)


def check_other_vaes_are_refused() -> None:
    """Raise unless VAEs of other models are refused by name."""
    vae = comfy.sd.VAE(sd=make_random_weights())
    vae.first_stage_model, vae.latent_channels = torch.nn.Linear(1, 1), 48
    for stream in (host_vae.create_decoder, host_vae.create_encoder):
        with pytest.raises(WeightsError, match=r"found a Linear of 48 latent channels.*wan_2\.1_vae"):
            stream(vae)


def make_random_weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = WanVAE(WIDTH, device="meta").state_dict()
    weights = {key: torch.randn(tensor.shape, generator=generator) for key, tensor in shapes.items()}
    fan_in = {key: weight[0].numel() ** 0.5 for key, weight in weights.items()}
    return {key: 1 + 0.1 * w if key.endswith("gamma") else w / max(fan_in[key], 3) for key, w in weights.items()}
