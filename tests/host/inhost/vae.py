"""Checks that our streams over the host's VAE give the pixels and latents of the host itself; run inside a host."""

import gc
import itertools
import logging
import weakref
from contextlib import contextmanager

import comfy.latent_formats
import comfy.model_management
import comfy.sd
import pytest
import torch
from comfyui_longlive.longlive.errors import VideoError, WeightsError
from comfyui_longlive.longlive.model.vae import WanVAE
from comfyui_longlive.nodes.host import fallback_decoder
from comfyui_longlive.nodes.host import vae as host_vae
from comfyui_longlive.nodes.host.host_network import HostStream
from comfyui_longlive.nodes.host.shared_vae import SharedVAE, choose_at_once

WIDTH, FRAMES, ROWS, COLUMNS = 4, 10, 3, 5  # an odd latent is left over in the end
TOLERANCE = 1e-5
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


def check_vae_decodes() -> dict[str, float]:
    """Raise unless every cut of a video gives the pixels of `VAE.decode`; return what differed at most, per cut."""
    vae = comfy.sd.VAE(sd=make_random_weights(), dtype=torch.float32)
    latents_BFCHW = torch.randn(1, FRAMES, 16, ROWS, COLUMNS, generator=torch.Generator().manual_seed(1))
    z_BCFHW = comfy.latent_formats.Wan21().process_out(latents_BFCHW.transpose(1, 2))
    whole_BFCHW = vae.decode(z_BCFHW).permute(0, 1, 4, 2, 3).float() * 2 - 1

    differences = {}
    for name, decoder in create_decoders(vae):
        for lengths in CUTS:
            pixels = [decoder.push(piece) for piece in latents_BFCHW.split(lengths, dim=1)]
            pixels_BFCHW = torch.cat([*pixels, decoder.flush()], dim=1)
            assert pixels_BFCHW.shape == whole_BFCHW.shape, (pixels_BFCHW.shape, whole_BFCHW.shape)
            difference = (pixels_BFCHW - whole_BFCHW).abs().max().item()
            assert difference <= TOLERANCE, f"{name}, cut into {lengths}: {difference}"
            differences[f"{name} {lengths}"] = difference
            assert_nothing_is_kept(decoder)
    return differences


def create_decoders(vae: comfy.sd.VAE) -> list[tuple[str, host_vae.ResumableDecoder]]:
    """Create our decoder with each number of latents per pass, and that over the host's network."""
    state = torch.get_rng_state()
    ours = [(f"ours, {n} at once", host_vae.create_decoder(vae, at_once=n)) for n in (1, 2, 3)]
    for _, decoder in ours:
        assert isinstance(decoder, host_vae.StreamingDecoder), decoder
        assert isinstance(decoder.vae, SharedVAE), decoder.vae
    with refuse_our_network():
        theirs = host_vae.create_decoder(comfy.sd.VAE(sd=make_random_weights(), dtype=vae.vae_dtype))
    assert torch.equal(torch.get_rng_state(), state), "the trial drew from the global random state"
    assert isinstance(theirs, host_vae.HostDecoder), theirs
    assert len({decoder.identity for _, decoder in ours} | {theirs.identity}) == 4
    return [*ours, ("the host's", theirs)]


@contextmanager
def refuse_our_network():
    """Let our network not fit the host's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SharedVAE, "__init__", lambda *_, **__: (_ for _ in ()).throw(AttributeError("other layers")))
        yield


def check_vae_encodes() -> dict[str, float]:
    """Raise unless every cut of a video gives the latents of `VAE.encode`; return what differed at most, per cut."""
    vae = comfy.sd.VAE(sd=make_random_weights(), dtype=torch.float32)
    state = torch.get_rng_state()
    encoders: list = [host_vae.create_encoder(vae, at_once=n) for n in (2, 3)]
    assert all(isinstance(each, host_vae.StreamingEncoder) and isinstance(each.vae, SharedVAE) for each in encoders)
    with refuse_our_network():
        encoders.append(host_vae.create_encoder(comfy.sd.VAE(sd=make_random_weights(), dtype=torch.float32)))
    assert torch.equal(torch.get_rng_state(), state), "the trial drew from the global random state"
    assert isinstance(encoders[-1], host_vae.HostEncoder), encoders[-1]
    differences, videos = {}, {count: encode_whole(vae, count) for count in {*map(sum, PIXEL_CUTS)}}
    for (number, encoder), lengths in itertools.product(enumerate(encoders), PIXEL_CUTS):
        pixels_BFCHW, whole_BFCHW = videos[sum(lengths)]
        latents = [encoder.push(piece) for piece in pixels_BFCHW.split(lengths, dim=1)]
        latents_BFCHW = torch.cat([*latents, encoder.flush()], dim=1)
        assert latents_BFCHW.shape == whole_BFCHW.shape, (lengths, latents_BFCHW.shape, whole_BFCHW.shape)
        assert latents_BFCHW.dtype == torch.float32
        difference = (latents_BFCHW - whole_BFCHW).abs().max().item()
        assert difference <= TOLERANCE, f"encoder {number}, cut into {lengths}: {difference}"
        differences[f"encoder {number} {lengths}"] = difference
        assert_nothing_is_kept(encoder)
    for encoder in encoders:
        assert encoder.flush().shape[1] == 0, "a video without frames has no latents"
        with pytest.raises(ValueError, match="48 x 20; width and height must be multiples of 8"):
            encoder.push(torch.zeros(1, 1, 3, 20, 48))
    return differences


def encode_whole(vae: comfy.sd.VAE, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Make a video of `count` pixel frames and its latents by `VAE.encode`."""
    shape = 1, count, 3, 8 * ROWS, 8 * COLUMNS
    pixels_BFCHW = torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 2 - 1
    z_BCFHW = vae.encode(pixels_BFCHW[0].movedim(1, -1) / 2 + 0.5).float()
    return pixels_BFCHW, comfy.latent_formats.Wan21().process_in(z_BCFHW).transpose(1, 2)


def check_weights_are_shared() -> None:
    """Raise unless our network computes with the very weights of the host's, and with those it gets later."""
    vae = comfy.sd.VAE(sd=make_random_weights(), dtype=torch.float32)
    decoder, latents_BFCHW = host_vae.create_decoder(vae), torch.zeros(1, 1, 16, ROWS, COLUMNS)
    assert isinstance(decoder, host_vae.StreamingDecoder)
    before = decoder.push(latents_BFCHW)
    decoder.flush()
    assert not list(decoder.vae.parameters()) or all(
        any(ours is theirs for theirs in vae.first_stage_model.parameters()) for ours in decoder.vae.parameters()
    )
    with torch.no_grad():
        vae.first_stage_model.decoder.head[2].weight.zero_()
        vae.first_stage_model.decoder.head[2].bias.fill_(0.5)
    assert not torch.equal(before, torch.full_like(before, 0.5))
    assert torch.equal(decoder.push(latents_BFCHW), torch.full_like(before, 0.5))


def check_half_precision() -> float:
    """Raise unless our network decodes as the host's in half precision, to the rounding; return what it differs by."""
    vae = comfy.sd.VAE(sd=make_random_weights(), dtype=torch.bfloat16)
    latents_BFCHW = torch.randn(1, FRAMES, 16, ROWS, COLUMNS, generator=torch.Generator().manual_seed(1))
    decoders = dict(create_decoders(vae))
    pixels = {name: torch.cat([each.push(latents_BFCHW), each.flush()], dim=1) for name, each in decoders.items()}
    theirs = pixels.pop("the host's")
    return max(float(torch.dist(ours, theirs) / theirs.norm()) for ours in pixels.values())


def check_the_trial_is_made_once() -> None:
    """Raise unless a loaded VAE is compared once with ours, and what is compared can be freed."""
    vae = comfy.sd.VAE(sd=make_random_weights(), dtype=torch.float32)
    network, calls = vae.first_stage_model, []
    with pytest.MonkeyPatch.context() as patch:
        decode = type(network).decode
        patch.setattr(type(network), "decode", lambda self, z: calls.append(z) or decode(self, z))
        for _ in range(3):
            host_vae.create_decoder(vae)
    assert len(calls) == 1
    alive = weakref.ref(network)
    del vae, network
    gc.collect()
    assert alive() is None


def check_a_refused_network_is_named() -> None:
    """Raise unless a log line says why the host's network decodes."""
    records = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    host_vae.log.addHandler(handler)
    vae = comfy.sd.VAE(sd=make_random_weights(), dtype=torch.float32)
    with pytest.MonkeyPatch.context() as patch:
        run = SharedVAE.run_decoder
        patch.setattr(SharedVAE, "run_decoder", lambda *a: 1.001 * run(*a))
        assert isinstance(host_vae.create_decoder(vae), host_vae.HostDecoder)
        with refuse_our_network():
            host_vae.create_encoder(vae)
    host_vae.log.removeHandler(handler)
    assert "decoder is ComfyUI's own, which is slower than LongLive's: LongLive's differs from it by 0.0" in records[0]
    assert "expected at most 1e-05" in records[0]
    assert "encoder is ComfyUI's own" in records[1]


def check_passes_follow_memory() -> None:
    """Raise unless as many latents pass at once as memory allows, and ComfyUI hears of what a pass needs."""
    vae = comfy.sd.VAE(sd=make_random_weights(), dtype=torch.bfloat16)
    gigabyte, loaded = 10**9, []
    with pytest.MonkeyPatch.context() as patch:
        for free, expected in ((100, 3), (7.2, 3), (7.1, 2), (5.6, 2), (5.5, 1), (0, 1)):
            patch.setattr(comfy.model_management, "get_free_memory", lambda *_, free=free: free * gigabyte)
            assert choose_at_once(vae, 480, 832) == expected, free
        patch.undo()
        load = comfy.model_management.load_models_gpu
        patch.setattr(
            comfy.model_management,
            "load_models_gpu",
            lambda *a, **k: loaded.append(k["memory_required"]) or load(*a, **k),
        )
        decoder = host_vae.create_decoder(vae, at_once=3)
        loaded.clear()
        decoder.push(torch.zeros(1, 4, 16, ROWS, COLUMNS))
    pixels = 64 * ROWS * COLUMNS * 2
    assert isinstance(decoder, host_vae.StreamingDecoder)
    assert loaded[0] == 5000 * pixels
    assert 9000 * pixels - 2 * decoder.past.num_bytes <= loaded[1] < 9000 * pixels


def check_convolutions_are_fast() -> None:
    """Small float32 convolutions of the host's network go to oneDNN, too, in our passes."""
    for name, decoder in create_decoders(comfy.sd.VAE(sd=make_random_weights(), dtype=torch.float32)):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            decoder.push(torch.zeros(1, 5, 16, ROWS, COLUMNS))  # the first latent, and passes of 1, 2 and 3
        kernels = {event.key for event in profile.key_averages()}
        assert "aten::mkldnn_convolution" in kernels, name
        assert not [kernel for kernel in kernels if "slow_conv" in kernel], name


def check_catching_up() -> None:
    """Raise unless a decoder that caught up gives the same bits as one that decoded everything.

    Each pass reads all that a decoder has kept, so the next twelve latents show a fault in any of it.
    """
    latents_BFCHW = torch.randn(1, 48, 16, ROWS, COLUMNS, generator=torch.Generator().manual_seed(1))
    *_, (_, ours), (_, theirs) = create_decoders(comfy.sd.VAE(sd=make_random_weights()))
    for block, starts in ((3, (1, 8, 15)), (1, (24, 47))):
        blocks = latents_BFCHW.split(block, dim=1)
        for decoder in (ours, theirs):
            whole = [decoder.push(piece) for piece in blocks] + [decoder.flush()]
            for start in starts:
                decoder.catch_up(blocks[:start])
                more = [*map(decoder.push, blocks[start : start + 12 // block])]
                ended = decoder.flush()  # where the video ends there, it has what waited
                more += [ended] * (start + len(more) == len(blocks))
                equal = all(torch.equal(a, b) for a, b in zip(more, whole[start:], strict=False))
                assert equal, f"{type(decoder).__name__}, blocks of {block}, from block {start}"
                assert_nothing_is_kept(decoder)


def check_out_of_memory() -> dict[str, float]:
    """Raise unless decoding continues after memory ran out at any pass; return differences from the host's pixels."""
    vaes = {network: comfy.sd.VAE(sd=make_random_weights()) for network in ("ours", "the host's")}
    blocks = torch.randn(1, 12, 16, 8, 8, generator=torch.Generator().manual_seed(1)).split(3, dim=1)
    decoder = host_vae.create_decoder(vaes["ours"])
    whole = torch.cat([*map(decoder.push, blocks), decoder.flush()], dim=1)
    differences = {}
    ways = "smaller passes", "tiles"
    for way, (network, fails_at) in itertools.product(ways, zip([*vaes] * 2, (1, 2, 4, 4), strict=True)):
        with pytest.MonkeyPatch.context() as patch:
            saving = create_fallback_decoder(vaes[network], network)
            if network == "ours":
                fail_at(patch, saving.decoder.vae, "run_decoder", fails_at)
            else:
                fail_at(patch, saving.decoder, "_network", fails_at)
            if way == "tiles":
                patch.setattr(fallback_decoder, "copy_vae", run_short_of_memory(host_vae.copy_vae))
                patch.setattr(fallback_decoder.TiledDecoder.__init__, "__kwdefaults__", {"tile": 6, "overlap": 4})
            pixels = torch.cat([*map(saving.push, blocks), saving.flush()], dim=1)
        assert isinstance(
            saving.decoder, fallback_decoder.TiledDecoder if way == "tiles" else host_vae.StreamingDecoder
        )
        assert pixels.shape == whole.shape, (way, network, fails_at, pixels.shape)
        difference, name = (pixels - whole).abs(), f"{way} from pass {fails_at} of {network}"
        differences[f"{name}: most"], differences[f"{name}: mean"] = float(difference.max()), float(difference.mean())
        assert difference.max() < 1e-4 or way == "tiles", differences
    with pytest.MonkeyPatch.context() as patch:
        saving = create_fallback_decoder(vaes["ours"], "ours")
        patch.setattr(host_vae.StreamingDecoder, "push", fail)
        with pytest.raises(VideoError, match=r"Session to Latent and VAE Decode \(Tiled\)"):
            saving.push(blocks[0])
    return differences


def create_fallback_decoder(vae: comfy.sd.VAE, network: str) -> fallback_decoder.FallbackDecoder:
    if network == "ours":
        return fallback_decoder.FallbackDecoder(vae, size=(64, 64))
    with refuse_our_network():
        return fallback_decoder.FallbackDecoder(vae, size=(64, 64))


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
    if isinstance(stream, host_vae.StreamingDecoder | host_vae.StreamingEncoder):
        assert not stream.past.seen
        assert getattr(stream, "waiting_BFCHW", None) is None
        return
    assert stream.waiting_BFCHW is None
    assert not any(torch.is_tensor(slot) for slot in stream.past)


def check_host_vae_of_an_unknown_cut() -> None:
    """Raise unless our code replaces a host that cuts video in an unknown way, and an unknown VAE is refused."""
    vae = comfy.sd.VAE(sd=make_random_weights())
    network = type(vae.first_stage_model)
    with refuse_our_network(), pytest.MonkeyPatch.context() as patch:
        patch.delattr(HostStream, "_run")
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


def make_random_weights(width: int = WIDTH) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = WanVAE(width, device="meta").state_dict()
    weights = {key: torch.randn(tensor.shape, generator=generator) for key, tensor in shapes.items()}
    fan_in = {key: weight[0].numel() ** 0.5 for key, weight in weights.items()}
    return {key: 1 + 0.1 * w if key.endswith("gamma") else w / max(fan_in[key], 3) for key, w in weights.items()}
