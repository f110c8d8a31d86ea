"""How long our network takes for a video beside the host's own decode and encode; run inside a host."""

import time
from collections.abc import Callable

import comfy.latent_formats
import comfy.sd
import comfy.utils
import torch
from comfyui_longlive.longlive.miniature.files import VAE as MINIATURE
from comfyui_longlive.nodes.host import vae as host_vae
from torch import Tensor
from vae import make_random_weights

ROUNDS, FRAMES, AT_ONCE = 5, 7, 3
RELEASED_WIDTH = 96


def measure_small() -> list[list[list[float]]]:
    return measure(make_random_weights(RELEASED_WIDTH), rows=4, columns=6)


def measure_larger() -> list[list[list[float]]]:
    return measure(make_random_weights(RELEASED_WIDTH), rows=8, columns=12, rounds=2)


def measure_miniature() -> list[list[list[float]]]:
    return measure(comfy.utils.load_torch_file(str(MINIATURE)), rows=8, columns=8)


def measure(weights: dict[str, Tensor], rows: int, columns: int, rounds: int = ROUNDS) -> list[list[list[float]]]:
    """Measure the seconds of one thread for a video of `FRAMES` latents in float32, in turn.

    Returns those of every round, the host's and ours over the same weights, of decoding and then of encoding.
    """
    torch.set_num_threads(1)
    vae = comfy.sd.VAE(sd=weights, dtype=torch.float32)
    latents_BFCHW = torch.randn(1, FRAMES, 16, rows, columns, generator=torch.Generator().manual_seed(1))
    z_BCFHW = comfy.latent_formats.Wan21().process_out(latents_BFCHW.transpose(1, 2))
    decoder, encoder = host_vae.create_decoder(vae, at_once=AT_ONCE), host_vae.create_encoder(vae, at_once=AT_ONCE)
    assert isinstance(decoder, host_vae.StreamingDecoder)
    assert isinstance(encoder, host_vae.StreamingEncoder)
    pixels_BFCHW = decoder.push(latents_BFCHW)
    decoder.flush()
    images_FHWC = pixels_BFCHW[0].movedim(1, -1) / 2 + 0.5
    return [
        take_turns(lambda: vae.decode(z_BCFHW), lambda: (decoder.push(latents_BFCHW), decoder.flush()), rounds),
        take_turns(lambda: vae.encode(images_FHWC), lambda: (encoder.push(pixels_BFCHW), encoder.flush()), rounds),
    ]


def take_turns(theirs: Callable[[], object], ours: Callable[[], object], rounds: int) -> list[list[float]]:
    """Return the seconds of both in every round but a first one."""
    seconds = []
    for _ in range(rounds + 1):
        began = time.thread_time()
        theirs()
        between = time.thread_time()
        ours()
        seconds.append([between - began, time.thread_time() - between])
    return seconds[1:]
