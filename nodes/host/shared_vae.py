"""Our own VAE network over the weights of one that ComfyUI loaded."""

from functools import partial

import comfy.model_management
import comfy.ops
import comfy.sd
import torch
from torch import Tensor, nn

from ...longlive.model.vae import WanVAE
from ...longlive.model.vae_layers import Norm, Past
from ...longlive.units import PIXEL_FRAMES_PER_FRAME, PIXELS_PER_CELL
from .vae_use import as_latents, identify_vae, use_vae

# Numbers alive at once per pixel of a picture: always, and for each latent of a pass. Counted on the meta device
# (benchmarks/work_counter.py), with a sixth more for what kernels allocate themselves.
DECODE_NUMBERS, ENCODE_NUMBERS = (3000, 2000), (2000, 1700)
MOST_AT_ONCE = 3  # latents per pass: a block


class SharedVAE(WanVAE):
    """Our network whose convolutions are ComfyUI's: no weight is copied, and ComfyUI casts, moves and pages them.

    Every pass announces its memory, loads the weights if they are not, and looks for Cancel if `interruptible`.
    Raises AttributeError for a network of other layers.
    """

    def __init__(self, vae: comfy.sd.VAE, *, interruptible: bool = True) -> None:
        network = vae.first_stage_model
        super().__init__(network.decoder.head[0].gamma.shape[0], device="meta")
        self.vae, self.interruptible = vae, interruptible
        layers = dict(self.named_modules())
        self.norms = {layer: network.get_submodule(name) for name, layer in layers.items() if isinstance(layer, Norm)}
        for name, layer in layers.items():
            if isinstance(layer, nn.Conv2d | nn.Conv3d):
                parent, _, leaf = name.rpartition(".")
                setattr(layers[parent], leaf, SharedConv(network.get_submodule(name)))

    @property
    def device(self) -> torch.device:
        return self.vae.device

    @property
    def dtype(self) -> torch.dtype:
        return self.vae.vae_dtype

    @property
    def identity(self) -> str:
        return identify_vae(self.vae)

    def run_decoder(self, latents_BFCHW: Tensor, past: Past, num_layers: int | None = None) -> Tensor:
        batch, frames, _, *cells = latents_BFCHW.shape
        needed = estimate_bytes_of_pass(self.vae, DECODE_NUMBERS, frames, *(PIXELS_PER_CELL * n for n in cells))
        self._prepare()
        with use_vae(self.vae, batch * needed - past.num_bytes):
            return super().run_decoder(latents_BFCHW.float(), past, num_layers)

    def encode_next(self, pixels_BFCHW: Tensor, past: Past) -> Tensor:
        batch, frames, _, *size = pixels_BFCHW.shape
        needed = estimate_bytes_of_pass(self.vae, ENCODE_NUMBERS, -(-frames // PIXEL_FRAMES_PER_FRAME), *size)
        self._prepare()
        with use_vae(self.vae, batch * needed - past.num_bytes):
            return as_latents(self.run_encoder(pixels_BFCHW, past))

    def _prepare(self) -> None:
        if self.interruptible:
            comfy.model_management.throw_exception_if_processing_interrupted()
        for ours, theirs in self.norms.items():  # ComfyUI may have replaced them since
            ours.gamma = theirs.gamma


class SharedConv(nn.Module):
    """A convolution of ComfyUI's. Of a causal one, only what it inherits: it would pad the frames that it is given."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        of_video = isinstance(layer, nn.Conv3d)
        self.compute = partial(comfy.ops.disable_weight_init.Conv3d.forward, layer) if of_video else layer.forward
        self.frames = layer.kernel_size[0] if of_video else 0

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] < self.frames:  # a first frame: ComfyUI, too, leaves the weight for the zeros before it out
            return self.compute(x, autopad="causal_zero")
        return self.compute(x)


def choose_at_once(vae: comfy.sd.VAE, height: int, width: int) -> int:
    """Choose how many latents of a video pass at once: as many as memory allows, up to a block."""
    available = count_available_bytes(vae.device) - vae.patcher.model_size()
    counts = range(MOST_AT_ONCE, 1, -1)
    return next((n for n in counts if estimate_bytes_of_pass(vae, DECODE_NUMBERS, n, height, width) <= available), 1)


def count_available_bytes(device: torch.device) -> float:
    """Count the memory that is free, or that ComfyUI frees when it is asked to.

    It hardly changes on one machine, so that a video decodes in the same passes each time.
    """
    free = comfy.model_management.get_free_memory(device)
    if device.type == "cpu":  # where ComfyUI keeps what it unloads
        return free
    loaded = (each for each in comfy.model_management.current_loaded_models if each.device == device)
    return free + sum(each.model_loaded_memory() for each in loaded if each.model is not None)


def estimate_bytes_of_pass(vae: comfy.sd.VAE, numbers: tuple[int, int], latents: int, height: int, width: int) -> int:
    """Estimate what a pass of `latents` latents needs beside the weights; `height` and `width` are in pixels."""
    always, each = numbers
    return (always + latents * each) * height * width * vae.vae_dtype.itemsize
