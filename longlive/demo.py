"""Tiny random models and a story of three prompts: what `longlive demo` runs until a trained miniature exists."""

import torch
from torch import nn

from .model.causal import CausalWan
from .model.vae import WanVAE
from .model.wan import Geometry, WanModel
from .text import WIDTH, HashedWords, TextEncoder

GEOMETRY = Geometry(dim=256, ffn_dim=512, num_heads=2, num_layers=2, freq_dim=256, text_dim=WIDTH)
VAE_WIDTH = 8
SCALE = 0.03  # of random weights, small enough that the flow stays near the size of noise
SEED = 0

STORY = """\
4s | a red fox walks through a snowy forest
4s | the red fox in the snowy forest stops and looks up at the falling snow
4s | the red fox in the snowy forest runs towards the rising sun
"""


def demo_models() -> tuple[CausalWan, WanVAE, TextEncoder, str]:
    """A model, a VAE and a text encoder that need no download, and the story they tell."""
    model = WanModel(GEOMETRY)
    vae = WanVAE(VAE_WIDTH)
    for module in (model, vae):
        fill(module, SEED)
        module.requires_grad_(False).eval()
    return CausalWan.of_tree(model), vae, HashedWords(), STORY


def fill(module: nn.Module, seed: int) -> None:
    """Seeded random weights: matrices small or, for convolutions, of unit gain; norms one; biases zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if name.endswith("bias"):
                weight.zero_()
            elif weight.ndim == 1 or name.endswith("gamma"):
                weight.fill_(1.0)
            elif weight.ndim > 3:
                gain = weight[0].numel() ** -0.5
                weight.copy_(gain * torch.randn(weight.shape, generator=generator))
            else:
                weight.copy_(SCALE * torch.randn(weight.shape, generator=generator))
