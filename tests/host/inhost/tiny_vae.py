"""Checks that a tiny VAE gives the host's pixels piece by piece, from the right latents; run inside a host."""

from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import comfy.latent_formats
import comfy.sd
import folder_paths
import latent_preview
import numpy as np
import pytest
import torch
from comfy.cli_args import LatentPreviewMethod, args
from comfyui_longlive.longlive.errors import VideoError, WeightsError
from comfyui_longlive.longlive.model.tiny_vae import LatentSpace, TinyDecoder, TinyVAE
from comfyui_longlive.nodes.host import tiny_vae, tuning_codec
from comfyui_longlive.nodes.host.fallback_decoder import FallbackDecoder
from safetensors.torch import save_file
from tiny_vae_weights import make_tiny_vae_weights
from vae import fail, fail_at

CUTS = ([10], [1] * 10, [3, 3, 3, 1], [2, 0, 5, 3])
LATENTS = torch.randn(1, 10, 16, 2, 3, generator=torch.Generator().manual_seed(1))
WAN = comfy.latent_formats.Wan21()


def make_vae(dtype: torch.dtype = torch.float32) -> comfy.sd.VAE:
    """Make the host's VAE of a file in `dtype`, which computes in float32."""
    return comfy.sd.VAE(sd=make_tiny_vae_weights(dtype), dtype=torch.float32)


def decode_in_one(decoder, latents_BFCHW: torch.Tensor = LATENTS) -> torch.Tensor:
    return torch.cat([decoder.push(latents_BFCHW), decoder.flush()], dim=1)


def decode_with_ours(dtype: torch.dtype, space: LatentSpace) -> torch.Tensor:
    weights = make_tiny_vae_weights(dtype)
    return decode_in_one(TinyDecoder(TinyVAE.of_weights(weights, space, dtype=torch.float32)))


def decode_with_the_host(vae: comfy.sd.VAE, z_BCFHW: torch.Tensor) -> torch.Tensor:
    return vae.decode(z_BCFHW).permute(0, 1, 4, 2, 3).float().clamp(0, 1) * 2 - 1


@torch.inference_mode()
def check_pieces() -> dict[str, float]:
    """Raise unless every cut gives the pixels of `VAE.decode` for both spaces; return what differed at most."""
    vae, differences = make_vae(), {}
    for space in LatentSpace:
        z_BCFHW = LATENTS.transpose(1, 2)
        whole_BFCHW = decode_with_the_host(vae, WAN.process_out(z_BCFHW) if space is LatentSpace.VAE else z_BCFHW)
        decoder = FallbackDecoder(vae, space)
        for lengths in CUTS:
            pixels = [decoder.push(piece) for piece in LATENTS.split(lengths, dim=1)]
            pixels_BFCHW = torch.cat([*pixels, decoder.flush()], dim=1)
            assert pixels_BFCHW.shape == whole_BFCHW.shape, (lengths, pixels_BFCHW.shape, whole_BFCHW.shape)
            difference = (pixels_BFCHW - whole_BFCHW).abs().max().item()
            assert difference <= 1e-5, f"{space}, cut into {lengths}: {difference}"
            differences[f"{space} {lengths}"] = difference
    return differences


@torch.inference_mode()
def check_a_file_in_float16_is_not_scaled_for_another_model() -> None:
    """ComfyUI scales its latents by 0.48 for HunyuanVideo; ours are those of the file that is released in float16."""
    vae = make_vae(torch.float16)
    expected = decode_with_ours(torch.float16, LatentSpace.NETWORK)
    assert torch.equal(decode_in_one(FallbackDecoder(vae)), expected)
    assert (decode_with_the_host(vae, LATENTS.transpose(1, 2)) - expected).abs().mean() > 0.01


def check_the_latent_space() -> None:
    """Raise unless the choice decides, then the name that the host's loader kept, then the precision."""

    def choose(dtype: torch.dtype, name: str | None = None, choice: str = "auto") -> LatentSpace:
        vae = make_vae(dtype)
        vae.patcher.cached_patcher_init = (print, (f"/models/vae/{name}", None, None)) if name else None
        return tiny_vae.choose_latent_space(vae, choice)

    half, full = torch.float16, torch.float32
    assert choose(half) is choose(half, "mine.safetensors") is LatentSpace.NETWORK
    assert choose(full) is choose(full, "mine.safetensors") is LatentSpace.VAE
    assert choose(half, "lighttaew2_1.safetensors") is LatentSpace.VAE
    assert choose(full, "taew2_1.pth") is LatentSpace.NETWORK
    assert choose(half, choice="vae") is choose(full, "taew2_1.pth", "vae") is LatentSpace.VAE
    identities = {FallbackDecoder(make_vae(), choice).identity for choice in ("auto", "vae", "network")}
    assert len(identities) == 2


@torch.inference_mode()
def check_catching_up() -> None:
    """Raise unless a decoder that caught up gives the same bits as one that decoded everything."""
    decoder, blocks = FallbackDecoder(make_vae()), torch.cat([LATENTS, -LATENTS], dim=1).split(3, dim=1)
    whole = [*map(decoder.push, blocks), decoder.flush()]
    for start in (1, 3, len(blocks) - 1):
        decoder.catch_up(blocks[:start])
        more = [*map(decoder.push, blocks[start:]), decoder.flush()]
        assert all(torch.equal(a, b) for a, b in zip(more, whole[start:], strict=True)), start


@torch.inference_mode()
def check_out_of_memory() -> None:
    """Raise unless decoding continues in smaller passes after memory ran out, and then ends with a cure."""
    vae, blocks = make_vae(), LATENTS.split(3, dim=1)
    whole = decode_with_ours(torch.float32, LatentSpace.VAE)
    with pytest.MonkeyPatch.context() as patch:
        decoder = FallbackDecoder(vae)
        fail_at(patch, decoder.decoder, "push", 2)
        pixels = torch.cat([*map(decoder.push, blocks), decoder.flush()], dim=1)
        assert isinstance(decoder.decoder, tiny_vae.HostTinyDecoder)
        assert decoder.decoder.at_once == 1
        assert (pixels - whole).abs().max() <= 1e-5
        patch.setattr(tiny_vae.HostTinyDecoder, "push", fail)
        with pytest.raises(VideoError, match=r"not enough memory"):
            FallbackDecoder(vae).push(blocks[0])


def check_refusals() -> None:
    """Raise unless the tuner refuses a tiny VAE, and Decode that of another model."""
    with pytest.raises(WeightsError, match=r"this is a tiny VAE, which only LongLive Decode .*; connect a VAE loader"):
        tuning_codec.create_codec(make_vae())
    other = make_tiny_vae_weights() | {
        "decoder.22.weight": torch.zeros(12, 64, 3, 3),
        "decoder.22.bias": torch.zeros(12),
    }
    other |= {"decoder.1.weight": torch.zeros(256, 48, 3, 3), "encoder.0.weight": torch.zeros(64, 12, 3, 3)}
    other |= {"encoder.17.weight": torch.zeros(48, 64, 3, 3), "encoder.17.bias": torch.zeros(48)}
    with pytest.raises(WeightsError, match=r"48 latent channels .*; use taew2_1\.safetensors"):
        FallbackDecoder(comfy.sd.VAE(sd=other))
    broken = make_tiny_vae_weights() | {"decoder.1.bias": torch.full((256,), torch.nan)}
    with pytest.raises(WeightsError, match=r"NaN, .*; use taew2_1\.safetensors"):
        FallbackDecoder(comfy.sd.VAE(sd=broken))


@torch.inference_mode()
def check_previews() -> None:
    """Raise unless a preview by a tiny VAE shows the last latent, in the space that the file takes."""
    patcher = SimpleNamespace(load_device=torch.device("cpu"), model=SimpleNamespace(latent_format=WAN))

    def list_previewers(method: LatentPreviewMethod, **files: torch.dtype | None) -> tuple:
        """Return the previewer of the host and ours, with these files in `vae_approx`; None is a damaged one."""
        with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
            patch.setitem(folder_paths.folder_names_and_paths, "vae_approx", ([folder], {".safetensors"}))
            patch.setattr(folder_paths, "filename_list_cache", {})
            patch.setattr(args, "preview_method", method)
            for name, dtype in files.items():
                weights = make_tiny_vae_weights(dtype or torch.float32)
                weights["decoder.22.bias"] *= 1 if dtype else torch.nan
                save_file(weights, Path(folder, f"{name}.safetensors"))
            host = latent_preview.get_previewer(patcher.load_device, WAN)
            return host and tiny_vae.HostPreviewer(host), tiny_vae.create_previewer(patcher)

    def show(previewer: tiny_vae.Previewer) -> np.ndarray:
        preview_format, image, size = previewer.draw(previewer.prepare(LATENTS))
        assert (preview_format, size) == ("JPEG", latent_preview.MAX_PREVIEW_RESOLUTION)
        return np.asarray(image)

    def expect(dtype: torch.dtype, space: LatentSpace) -> np.ndarray:
        weights = make_tiny_vae_weights(dtype)
        decoder = TinyDecoder(TinyVAE.of_weights(weights, space, dtype=torch.float32))
        return np.asarray(latent_preview.preview_to_image(decoder.push(LATENTS[:, -1:])[0, -1].movedim(0, -1)))

    for dtype in (torch.float16, torch.float32):
        host, ours = list_previewers(LatentPreviewMethod.TAESD, lighttaew2_1=dtype, taew2_1=dtype)
        expected = expect(dtype, LatentSpace.VAE)
        assert np.abs(show(ours).astype(int) - expected).max() <= 1
        assert np.abs(show(host).astype(int) - expected).mean() > 2, "the host scales right: its own previewer would do"
    _, ours = list_previewers(LatentPreviewMethod.TAESD, taew2_1=torch.float16)
    assert np.abs(show(ours).astype(int) - expect(torch.float16, LatentSpace.NETWORK)).max() <= 1

    files = {"lighttaew2_1": torch.float32, "taew2_1": torch.float16}
    for method in (LatentPreviewMethod.Latent2RGB, LatentPreviewMethod.Auto):
        assert is_by_colours(list_previewers(method, **files)[1])
    assert list_previewers(LatentPreviewMethod.NoPreviews, **files)[1] is None
    assert is_by_colours(list_previewers(LatentPreviewMethod.TAESD)[1])
    assert is_by_colours(list_previewers(LatentPreviewMethod.TAESD, taew2_1=None)[1])


def is_by_colours(previewer: tiny_vae.Previewer) -> bool:
    """Whether a previewer is ComfyUI's that adds up colours of the latents' channels."""
    return type(getattr(previewer, "previewer", None)) is latent_preview.Latent2RGBPreviewer
