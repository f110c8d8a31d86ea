"""How long our network takes for a video beside the host's own decode; run inside a host."""

import statistics
import time

import comfy.latent_formats
import comfy.sd
import comfy.utils
import torch
from comfyui_longlive.longlive.miniature.files import VAE as MINIATURE
from comfyui_longlive.nodes.host import vae as host_vae
from vae import make_random_weights

TIMES, FRAMES = 3, 7
RELEASED_WIDTH = 96


def measure_released_width() -> list[float]:
    return measure(make_random_weights(RELEASED_WIDTH), rows=4, columns=6)


def measure_miniature() -> list[float]:
    return measure(comfy.utils.load_torch_file(str(MINIATURE)), rows=8, columns=8)


def measure(weights: dict[str, torch.Tensor], rows: int, columns: int) -> list[float]:
    """Measure the seconds of one thread for a video of `FRAMES` latents in float32, in turn.

    Returns the medians of the host's decode and of ours over the same weights, and the median of their ratios.
    """
    torch.set_num_threads(1)
    vae = comfy.sd.VAE(sd=weights, dtype=torch.float32)
    latents_BFCHW = torch.randn(1, FRAMES, 16, rows, columns, generator=torch.Generator().manual_seed(1))
    z_BCFHW = comfy.latent_formats.Wan21().process_out(latents_BFCHW.transpose(1, 2))
    ours = host_vae.create_decoder(vae, at_once=3)
    assert isinstance(ours, host_vae.StreamingDecoder)
    seconds = []
    for _ in range(TIMES + 1):  # the first is not counted
        began = time.thread_time()
        vae.decode(z_BCFHW)
        between = time.thread_time()
        ours.push(latents_BFCHW)
        ours.flush()
        seconds.append((between - began, time.thread_time() - between))
    theirs, own = zip(*seconds[1:], strict=True)
    ratio = statistics.median(b / a for a, b in seconds[1:])
    return [statistics.median(theirs), statistics.median(own), ratio]
