"""Training of the miniature's VAE on films of the world (Wan2.1's structure, arXiv 2503.20314 §4.1).

PyTorch's own initial weights do not train at this depth: the zeros before a film and a gain of 1/sqrt(3) a convolution
leave no signal. So every convolution begins in its newest frame alone, with Kaiming gain. Most of the training
sees crops around the thing, at a quarter of the cost of whole pictures; its end (`VaeRecipe.whole`) sees those.

Dimension key: B films, C channels, T pixel frames, H rows, W columns.
"""

import math
import random
from dataclasses import dataclass

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from ...model.vae import Past, WanVAE
from ...resume import joined, part
from ..films import numbered, random_film
from ..world import SIZE, render
from .optimizer import Optimizer, lay_channels_last
from .trainer import rate

WIDTH = 16  # of the first level; Wan2.1's is 96


@dataclass(frozen=True, slots=True, kw_only=True)
class VaeRecipe:
    """How the VAE is trained."""

    seed: int = 0
    steps: int = 2300
    whole: float = 0.3  # the last share of the steps sees whole pictures
    crop: int = 32  # pixels, before that
    batch: int = 8  # films of a step; a quarter of them when whole
    pixel_frames: int = 9
    rate: float = 1.2e-3
    decay: float = 0.5  # the last share of the steps in which the rate falls to zero
    warmup: int = 50
    thing: float = 4.0  # weight of the thing's pixels over the sky's
    noise: float = 0.06  # of the latents' own deviation, added before the decoder


class VaeTraining:
    """A VAE on its way: `step` by step, from whatever `restore` brought back."""

    def __init__(self, recipe: VaeRecipe) -> None:
        self.recipe, self.num_steps = recipe, 0
        vae = begun(WanVAE(WIDTH), torch.Generator().manual_seed(recipe.seed))
        lay_channels_last(vae)
        self.vae = vae
        self.optimizer = Optimizer(vae, recipe.rate)

    @property
    def done(self) -> bool:
        return self.num_steps >= self.recipe.steps

    def step(self) -> dict[str, float]:
        """One step; the figures of its batch."""
        recipe, n = self.recipe, self.num_steps
        draw = numbered(f"vae {recipe.seed}", n)
        pixels, mask = self.batch(draw)
        noise = torch.Generator().manual_seed(draw.getrandbits(60))
        with torch.autocast("cpu", torch.bfloat16):
            z_BCTHW = encoded(self.vae, pixels).float()
            spread = z_BCTHW.detach().std()
            shaken = z_BCTHW + recipe.noise * spread * torch.randn(z_BCTHW.shape, generator=noise)
            decoded_BCTHW = decoded(self.vae, shaken)
        error = decoded_BCTHW.float() - pixels
        weight = 1 + recipe.thing * mask
        axes = (0, 2, 3, 4)
        scale = (z_BCTHW.square().mean(axes) - 1).abs().mean() + z_BCTHW.mean(axes).square().mean()
        loss = (weight * (error.abs() + 4 * error.square())).mean() + 0.02 * scale
        loss.backward()

        self.optimizer.step(rate(recipe, n))
        self.num_steps += 1
        return {"loss": loss.item(), "psnr": psnr(error.detach())}

    def batch(self, draw: random.Random) -> tuple[Tensor, Tensor]:
        """The pixels [B 3 T H W] of a step's films, and where the thing is [B 1 T H W]."""
        recipe, frames = self.recipe, self.recipe.pixel_frames
        is_whole = self.num_steps >= (1 - recipe.whole) * recipe.steps
        size = SIZE if is_whole else recipe.crop
        count = recipe.batch * recipe.crop**2 // size**2
        begins = range(1, frames, 4)
        films = [random_film(draw, (draw.choice(begins),) if draw.random() < 0.4 else ()) for _ in range(count)]
        pixels, alpha = render(films, frames)
        mask = mask_of_crop(alpha)
        shifts = []
        for film in films:
            x, y = film.centres(frames)[frames // 2]
            shifts.append([0, 0] if is_whole else [size // 2 - int(c) + draw.randrange(-12, 13) for c in (y, x)])

        def cropped(images: Tensor) -> Tensor:
            rolled = [image.roll(shift, (-2, -1)) for image, shift in zip(images, shifts, strict=True)]
            return torch.stack(rolled)[..., :size, :size]

        pixels_BCTHW = cropped(pixels).transpose(1, 2).contiguous(memory_format=torch.channels_last_3d)
        return pixels_BCTHW, cropped(mask).unsqueeze(1)

    def state(self) -> dict[str, Tensor]:
        return joined({"vae": dict(self.vae.state_dict()), "optimizer": self.optimizer.state()})

    def restore(self, state: dict[str, Tensor], num_steps: int) -> None:
        self.vae.load_state_dict(part(state, "vae"))
        self.optimizer.restore(part(state, "optimizer"))
        self.num_steps = num_steps


def begun(vae: WanVAE, generator: torch.Generator) -> WanVAE:
    """Give a VAE weights from which it learns."""
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
            elif name.endswith("time_conv.weight"):  # the newest frame as it is, twice where frames are doubled
                weight.zero_()
                weight[:, :, -1, 0, 0] = torch.eye(weight.shape[1]).repeat(weight.shape[0] // weight.shape[1], 1)
        vae.get_parameter("decoder.head.2.weight").mul_(0.1)
        for conv in (vae.conv1, vae.conv2):
            nn.init.eye_(conv.weight[:, :, 0, 0, 0])
    return vae


def mask_of_crop(alpha: Tensor) -> Tensor:
    """The thing and the pixel around it [..., H, W], 0..1: where a decoder's errors are seen first."""
    flat = alpha.reshape(-1, 1, *alpha.shape[-2:])
    return nnf.max_pool2d(flat, 3, stride=1, padding=1).reshape(alpha.shape)


def encoded(vae: WanVAE, pixels_BCTHW: Tensor) -> Tensor:
    """The latents of whole films, before normalisation; through the streaming code, in two passes."""
    past = Past()
    first = vae.encoder(pixels_BCTHW[:, :, :1], past)
    past.begun = True
    rest = vae.encoder(pixels_BCTHW[:, :, 1:], past)
    return vae.conv1(torch.cat([first, rest], dim=2)).chunk(2, dim=1)[0]


def decoded(vae: WanVAE, z_BCTHW: Tensor) -> Tensor:
    """The pixels of whole films."""
    past = Past()
    x_BCTHW = vae.conv2(z_BCTHW)
    first = vae.decoder(x_BCTHW[:, :, :1], past)
    past.begun = True
    return torch.cat([first, vae.decoder(x_BCTHW[:, :, 1:], past)], dim=2)


def psnr(error: Tensor) -> float:
    """Of an error of pixels in -1..1, in dB."""
    return -10 * math.log10((error / 2).square().mean().item())
