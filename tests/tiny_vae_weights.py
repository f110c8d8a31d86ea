"""Random weights in the layout of a released tiny VAE (TAEHV for Wan2.1): 128 tensors, 22.6 MB in float16."""

import torch
from torch import Tensor

DECODER_STAGES = ((3, 256, 1, 128), (9, 128, 2, 64), (15, 64, 2, 64))  # first layer, width, growth, next width
ENCODER_STAGES = ((2, 2), (7, 2), (12, 1))  # first layer, frames pooled


def list_tiny_vae_shapes() -> dict[str, tuple[int, ...]]:
    """List all tensors as released, without a look at our own network."""
    shapes: dict[str, tuple[int, ...]] = {}

    def add(name: str, width_out: int, width_in: int, size: int = 3, *, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = width_out, width_in, size, size
        if bias:
            shapes[f"{name}.bias"] = (width_out,)

    def add_blocks(half: str, first: int, width: int) -> None:
        for layer in range(first, first + 3):
            add(f"{half}.{layer}.conv.0", width, 2 * width)
            add(f"{half}.{layer}.conv.2", width, width)
            add(f"{half}.{layer}.conv.4", width, width)

    add("encoder.0", 64, 3)
    for first, pooled in ENCODER_STAGES:
        add(f"encoder.{first}.conv", 64, 64 * pooled, 1, bias=False)
        add(f"encoder.{first + 1}", 64, 64, bias=False)
        add_blocks("encoder", first + 2, 64)
    add("encoder.17", 16, 64)
    add("decoder.1", 256, 16)
    for first, width, growth, next_width in DECODER_STAGES:
        add_blocks("decoder", first, width)
        add(f"decoder.{first + 4}.conv", width * growth, width, 1, bias=False)
        add(f"decoder.{first + 5}", next_width, width, bias=False)
    add("decoder.22", 3, 64)
    return shapes


def make_tiny_vae_weights(dtype: torch.dtype = torch.float32, *, seed: int = 0) -> dict[str, Tensor]:
    """Make weights that decode random latents to pixels of which few are clamped."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in list_tiny_vae_shapes().items():
        noise = torch.randn(shape, generator=generator)
        weights[name] = noise * 0.05 if name.endswith("bias") else noise / torch.Size(shape[1:]).numel() ** 0.5
    weights["decoder.22.weight"] *= 0.2
    weights["decoder.22.bias"] += 0.5
    return {name: weight.to(dtype) for name, weight in weights.items()}
