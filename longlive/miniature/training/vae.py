"""Training of the miniature's VAE on clips of the world (Wan2.1's structure, arXiv 2503.20314 §4.1).

PyTorch's initial weights do not train at this depth: the zeros before a clip and a gain of 1/sqrt(3) per convolution
leave no signal. So every convolution starts with weights in its newest frame only, with Kaiming gain. Most steps use
crops around the thing, at a quarter of the cost of whole pictures; the last ones (`VaeRecipe.whole`) use those.

Dimension key: B clips, C channels, T pixel frames, H rows, W columns.
"""

import math
import random
from dataclasses import dataclass

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from ...model.vae import Past, WanVAE
from ..clips import choose_clip, seed_random
from ..world import SIZE, render_clips
from .optimizer import Optimizer, lay_channels_last
from .trainer import ModuleTraining

WIDTH = 16  # of the first level; 96 in Wan2.1


@dataclass(frozen=True, slots=True, kw_only=True)
class VaeRecipe:
    """How the VAE is trained."""

    seed: int = 0
    steps: int = 3600
    whole: float = 0.35  # the last share of the steps, with whole pictures and sharp edges
    crop: int = 32  # pixels, in the steps before
    batch: int = 8  # clips per step; with whole pictures as few as cost the same, but one
    pixel_frames: int = 9
    long: int = 29  # pixel frames in every second step with whole pictures: as far back as the VAE looks
    rate: float = 1.2e-3
    decay: float = 0.75  # the last share of the steps, in which the rate falls to zero
    warmup: int = 50
    thing: float = 4.0  # extra weight of the thing's pixels
    edge: float = 6.0  # extra weight of the pixels at its edge, with whole pictures
    noise: float = 0.06  # of the latents' deviation, added before the decoder


class VaeTraining(ModuleTraining[VaeRecipe]):
    """The training of the VAE."""

    def __init__(self, recipe: VaeRecipe) -> None:
        self.vae = WanVAE(WIDTH)
        initialize_vae(self.vae, torch.Generator().manual_seed(recipe.seed))
        lay_channels_last(self.vae)
        super().__init__(recipe, {"vae": self.vae}, Optimizer(self.vae, recipe.rate))

    def step(self) -> dict[str, float]:
        """Make one step and return the figures of its batch."""
        recipe = self.recipe
        draw = seed_random(f"vae {recipe.seed}", self.num_steps)
        pixels, weight = self.make_batch(draw)
        noise = torch.Generator().manual_seed(draw.getrandbits(60))
        with torch.autocast("cpu", torch.bfloat16):
            z_BCTHW = encode_whole(self.vae, pixels).float()
            spread = z_BCTHW.detach().std()
            perturbed_BCTHW = z_BCTHW + recipe.noise * spread * torch.randn(z_BCTHW.shape, generator=noise)
            decoded_BCTHW = decode_whole(self.vae, perturbed_BCTHW)
        error = decoded_BCTHW.float() - pixels
        axes = (0, 2, 3, 4)
        scale = (z_BCTHW.square().mean(axes) - 1).abs().mean() + z_BCTHW.mean(axes).square().mean()
        loss = (weight * (error.abs() + 4 * error.square())).mean() + 0.02 * scale
        loss.backward()

        self.finish_step()
        return {"loss": loss.item(), "psnr": measure_psnr(error.detach())}

    def make_batch(self, draw: random.Random) -> tuple[Tensor, Tensor]:
        """Make the pixels [B 3 T H W] of a step's clips, and the weight of each pixel's error [B 1 T H W]."""
        recipe = self.recipe
        is_whole = self.num_steps >= (1 - recipe.whole) * recipe.steps
        size = SIZE if is_whole else recipe.crop
        frames = recipe.long if is_whole and self.num_steps % 2 else recipe.pixel_frames
        count = max(1, recipe.batch * recipe.crop**2 * recipe.pixel_frames // (size**2 * frames))
        begins = range(1, frames, 4)
        clips = [
            choose_clip(draw, (draw.choice(begins),) if draw.random() < 0.4 else (), roam=is_whole)
            for _ in range(count)
        ]
        pixels, alpha = render_clips(clips, frames)
        weight = 1 + recipe.thing * dilate(alpha)
        if is_whole:
            weight = weight + recipe.edge * dilate(4 * alpha * (1 - alpha))
        shifts = []
        for clip in clips:
            x, y = clip.locate_thing(frames)[frames // 2]
            shifts.append([0, 0] if is_whole else [size // 2 - int(c) + draw.randrange(-12, 13) for c in (y, x)])

        def crop(images: Tensor) -> Tensor:
            rolled = [image.roll(shift, (-2, -1)) for image, shift in zip(images, shifts, strict=True)]
            return torch.stack(rolled)[..., :size, :size]

        pixels_BCTHW = crop(pixels).transpose(1, 2).contiguous(memory_format=torch.channels_last_3d)
        return pixels_BCTHW, crop(weight).unsqueeze(1)


def initialize_vae(vae: WanVAE, generator: torch.Generator) -> None:
    """Set weights that train, in place."""
    with torch.no_grad():
        for module in vae.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                newest = module.weight[:, :, -1:] if module.weight.ndim == 5 else module.weight
                gain = 2.0 if module.kernel_size[-1] > 1 else 1.0
                drawn = torch.empty(newest.shape).normal_(0, math.sqrt(gain / newest[0].numel()), generator=generator)
                nn.init.zeros_(module.weight)
                newest.copy_(drawn)
        for name, weight in vae.named_parameters():
            if name.endswith("bias"):
                weight.zero_()
            elif name.endswith("residual.6.weight"):  # the second convolution beside a shortcut
                weight.mul_(0.5)
            elif "downsamples" in name and name.endswith("resample.1.weight"):
                weight.mul_(0.1)  # a little noise on the mean of four pixels
                weight[..., :2, :2] += 0.25 * torch.eye(len(weight))[..., None, None]
            elif name.endswith("time_conv.weight"):  # the newest frame unchanged; twice where frames are doubled
                weight.zero_()
                weight[:, :, -1, 0, 0] = torch.eye(weight.shape[1]).repeat(weight.shape[0] // weight.shape[1], 1)
        vae.get_parameter("decoder.head.2.weight").mul_(0.1)
        for conv in (vae.conv1, vae.conv2):
            nn.init.eye_(conv.weight[:, :, 0, 0, 0])


def dilate(alpha: Tensor) -> Tensor:
    """Widen a mask [..., H, W] by a pixel: a decoder's errors show first at the thing's edge."""
    flat = alpha.reshape(-1, 1, *alpha.shape[-2:])
    return nnf.max_pool2d(flat, 3, stride=1, padding=1).reshape(alpha.shape)


def encode_whole(vae: WanVAE, pixels_BCTHW: Tensor) -> Tensor:
    """Encode whole clips to latents before normalisation, through the streaming code in two passes."""
    past = Past()
    first = vae.encoder(pixels_BCTHW[:, :, :1], past)
    past.has_begun = True
    rest = vae.encoder(pixels_BCTHW[:, :, 1:], past)
    return vae.conv1(torch.cat([first, rest], dim=2)).chunk(2, dim=1)[0]


def decode_whole(vae: WanVAE, z_BCTHW: Tensor) -> Tensor:
    """Decode whole clips to pixels."""
    past = Past()
    x_BCTHW = vae.conv2(z_BCTHW)
    first = vae.decoder(x_BCTHW[:, :, :1], past)
    past.has_begun = True
    return torch.cat([first, vae.decoder(x_BCTHW[:, :, 1:], past)], dim=2)


def measure_psnr(error: Tensor) -> float:
    """Measure the PSNR in dB of an error of pixels in -1..1."""
    return -10 * math.log10((error / 2).square().mean().item())
