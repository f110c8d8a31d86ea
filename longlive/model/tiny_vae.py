"""TAEHV, a small decoder of Wan2.1's latents (madebyollin/taehv): a twenty-fifth of the work, softer pictures.

Every frame sees itself and the one before it, so a video streams exactly. A `TinyPast` keeps the last frame that each
block saw; it belongs to one video, not to the network.

Dimension key: B batch, F latents, T frames of a layer, C channels, H rows, W columns, N = B T.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from functools import cached_property

import torch
from torch import Tensor, nn

from ..digest import hash_tensors
from ..errors import WeightsError, shorten
from ..units import PIXEL_FRAMES_PER_FRAME, PIXELS_PER_CELL
from .convolution import use_fast_convolutions
from .vae import LATENT_CHANNELS, denormalise, refuse_other_numbers, refuse_other_shapes

CURE = "use taew2_1.safetensors or lighttaew2_1.safetensors"
STAGES = ((256, 1), (128, 2), (64, 2))  # width, and the frames that follow from one at the end of the stage
NEXT_WIDTHS = (128, 64, 64)  # after each stage
LOOKBACK_BLOCKS = 3  # of a stage
FIRST_STAGE, STAGE_LAYERS = 3, LOOKBACK_BLOCKS + 3  # place of the first stage among the layers; layers of a stage
CONVOLUTION_AXES = 4  # of its weights: out, in, rows, columns; and of frames
LIMIT = 3.0  # latents beyond it are pressed together
DROPPED = PIXEL_FRAMES_PER_FRAME - 1  # pixel frames of a video's first latent that show nothing yet
TINY_LATENTS_PER_PASS = 3
TINY_WARM_UP = 8  # latents before a pixel frame that it depends on


class LatentSpace(StrEnum):
    """What a tiny VAE takes. Its file does not say which."""

    NETWORK = "network"  # latents as the network makes them: taew2_1
    VAE = "vae"  # latents as the Wan2.1 VAE takes them: lighttaew2_1


class TinyPast:
    """The last frame that every `LookbackBlock` saw of one video; zeros before its beginning."""

    def __init__(self) -> None:
        self.has_begun = False  # whether the first latent has passed
        self.seen: dict[nn.Module, Tensor] = {}

    def join(self, layer: nn.Module, x_BTCHW: Tensor) -> Tensor:
        """Put every frame and the one before it side by side, [N 2C H W], and keep the last one for next time."""
        B, T, C, H, W = x_BTCHW.shape
        joined_NCHW = x_BTCHW.new_empty(B * T, H, W, 2 * C).permute(0, 3, 1, 2)  # channels last
        joined_BTCHW = joined_NCHW.unflatten(0, (B, T))
        joined_BTCHW[:, :, :C] = x_BTCHW
        joined_BTCHW[:, 1:, C:] = x_BTCHW[:, :-1]
        joined_BTCHW[:, 0, C:] = self.seen.get(layer, 0)
        self.seen[layer] = x_BTCHW[:, -1].clone()  # a view would keep all of the pass alive
        return joined_NCHW


class TinyVAE(nn.Module):
    """The decoder of a tiny VAE under its released names: 64 tensors, `decoder.1.weight` to `decoder.22.bias`."""

    def __init__(self, space: LatentSpace, *, device=None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.space, like = space, {"device": device, "dtype": dtype}
        layers: list[nn.Module] = [
            nn.Identity(),
            make_convolution(LATENT_CHANNELS, STAGES[0][0], **like),
            nn.ReLU(True),
        ]
        for (width, growth), next_width in zip(STAGES, NEXT_WIDTHS, strict=True):
            layers += [LookbackBlock(width, **like) for _ in range(LOOKBACK_BLOCKS)]
            # The released order is upsample, grow. Grow mixes channels alone, so it may come first: on a fourth.
            layers += [nn.Identity(), Grow(width, growth, **like)]
            layers += [make_convolution(width, next_width, bias=False, **like)]
        layers += [nn.ReLU(True), make_convolution(NEXT_WIDTHS[-1], 3, **like)]
        self.decoder = nn.ModuleList(layers)
        for weight in self.parameters():
            weight.data = as_channels_last(weight.data)

    @classmethod
    def of_weights(
        cls, weights: Mapping[str, Tensor], space: LatentSpace, *, device=None, dtype: torch.dtype | None = None
    ) -> "TinyVAE":
        """Build the decoder of a state dict, frozen; an encoder in it is left out. Copies. Raises WeightsError."""
        if not is_tiny_vae(weights):
            found = f"{len(weights)} tensors such as {shorten(min(weights))!r}" if weights else "no tensors"
            raise WeightsError(f"this is not a tiny VAE: found {found}, expected 'decoder.22.bias'; {CURE}")
        channels = weights["decoder.1.weight"].shape[1:2].numel()
        if channels != LATENT_CHANNELS:
            raise WeightsError(
                f"the tiny VAE has {channels} latent channels (Wan2.2's has 48), expected Wan2.1's {LATENT_CHANNELS}; "
                f"{CURE}"
            )
        weights = {key: weight for key, weight in weights.items() if not key.startswith("encoder.")}
        refuse_other_numbers(weights, weights, cure=CURE)
        vae = cls(space, device="meta", dtype=dtype or weights["decoder.1.weight"].dtype)
        refuse_other_shapes(weights, vae.state_dict(), cure=CURE)
        vae.to_empty(device=device or "cpu").load_state_dict(weights)
        refuse_other_numbers(weights, vae.state_dict(), cure=CURE)  # after the conversion
        return vae.requires_grad_(False)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @cached_property
    def identity(self) -> str:
        """What the pixels depend on, as words and a hash."""
        return f"{hash_tensors(self.state_dict())}, latents of the {self.space}, on {self.device.type}"

    def decode_next(self, latents_BFCHW: Tensor, past: TinyPast) -> Tensor:
        """Decode the latents that follow `past`, in one pass: 4 pixel frames of each, 0..1, without clamping."""
        x_NCHW = self.run_stages(latents_BFCHW, past)
        with use_fast_convolutions(self.device):  # one by one, because here frames are largest
            pixels_NCHW = torch.cat([self._make_pixels(frame) for frame in x_NCHW.split(1)])
        return pixels_NCHW.unflatten(0, (len(latents_BFCHW), -1))

    def run_stages(self, latents_BFCHW: Tensor, past: TinyPast) -> Tensor:
        """Run all layers that look back, and update `past`; return frames [N C H W] of half the size of pixels."""
        x_BFCHW = latents_BFCHW.to(self.device)
        x_BFCHW = denormalise(x_BFCHW) if self.space is LatentSpace.VAE else x_BFCHW
        x_NCHW = as_channels_last(x_BFCHW.to(next(self.parameters()).dtype).flatten(0, 1))
        with use_fast_convolutions(self.device):
            x_NCHW = self.decoder[2](self.decoder[1](x_NCHW.div(LIMIT).tanh_().mul_(LIMIT)))
            for number in range(len(STAGES)):
                if number:
                    x_NCHW = self._finish_stage(number - 1, x_NCHW)
                for block in self._list_stage(number)[:LOOKBACK_BLOCKS]:
                    x_NCHW = block(x_NCHW.unflatten(0, (len(latents_BFCHW), -1)), past)
        past.has_begun = True
        return x_NCHW

    def _make_pixels(self, x_NCHW: Tensor) -> Tensor:
        relu, last = self.decoder[-2:]
        return last(relu(self._finish_stage(len(STAGES) - 1, x_NCHW)))

    def _finish_stage(self, number: int, x_NCHW: Tensor) -> Tensor:
        """Make frames of twice the size, and as many as the stage makes of one."""
        *_, grow, convolution = self._list_stage(number)
        return convolution(enlarge_frames(grow(x_NCHW), STAGES[number][1]))

    def _list_stage(self, number: int) -> nn.ModuleList:
        start = FIRST_STAGE + number * STAGE_LAYERS
        return self.decoder[start : start + STAGE_LAYERS]


class LookbackBlock(nn.Module):
    """Three convolutions of a frame and the one before it, beside a shortcut."""

    def __init__(self, width: int, **like) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            make_convolution(2 * width, width, **like),
            nn.ReLU(True),
            make_convolution(width, width, **like),
            nn.ReLU(True),
            make_convolution(width, width, **like),
        )

    def forward(self, x_BTCHW: Tensor, past: TinyPast) -> Tensor:
        return self.conv(past.join(self, x_BTCHW)).add_(x_BTCHW.flatten(0, 1)).relu_()


class Grow(nn.Module):
    """Make the channels of `growth` frames from those of one."""

    def __init__(self, width: int, growth: int, **like) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width * growth, 1, bias=False, **like)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.conv(x_NCHW)


def make_convolution(width_in: int, width_out: int, *, bias: bool = True, **like) -> nn.Conv2d:
    return nn.Conv2d(width_in, width_out, 3, padding=1, bias=bias, **like)


def enlarge_frames(grown_NCHW: Tensor, growth: int) -> Tensor:
    """Make `growth` frames in a row of the channels of one, each cell twice as high and as wide; one copy for all."""
    N, C, H, W = grown_NCHW.shape
    frames_NTHWC = grown_NCHW.unflatten(1, (growth, C // growth)).permute(0, 1, 3, 4, 2)
    large = grown_NCHW.new_empty(N, growth, H, 2, W, 2, C // growth)
    large.copy_(frames_NTHWC[:, :, :, None, :, None])
    return large.view(N * growth, 2 * H, 2 * W, C // growth).permute(0, 3, 1, 2)  # channels last


def as_channels_last(x: Tensor) -> Tensor:
    """Lay out frames or the weights of a convolution with their channels together, as GPUs compute them fastest."""
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == CONVOLUTION_AXES else x


def is_tiny_vae(weights: Mapping[str, Tensor]) -> bool:
    """Whether weights are those of a TAEHV, for whichever model: the names say no more."""
    return {"decoder.1.weight", "decoder.22.bias"} <= weights.keys()


class TinyDecoder:
    """A `ResumableDecoder` over a tiny VAE: the first latent gives 1 pixel frame, each later one 4, without delay.

    How latents are split into pushes changes pixels by rounding only (1e-5).
    """

    def __init__(self, vae: TinyVAE, *, at_once: int = TINY_LATENTS_PER_PASS) -> None:
        self.vae, self.at_once, self.past = vae, at_once, TinyPast()
        self.nothing_BFCHW = torch.empty(1, 0, 3, 0, 0)

    @property
    def identity(self) -> str:
        return f"tiny, {self.at_once} at once, {self.vae.identity}"

    @torch.no_grad()
    def catch_up(self, blocks: Sequence[Tensor]) -> None:
        self.past = TinyPast()
        for block in choose_recent_blocks(blocks):
            for piece in block.split(self.at_once, dim=1):
                self.vae.run_stages(piece, self.past)

    @torch.no_grad()
    def push(self, latents_BFCHW: Tensor) -> Tensor:
        batch, count, _, *cells = latents_BFCHW.shape
        self.nothing_BFCHW = torch.empty(batch, 0, 3, *(PIXELS_PER_CELL * n for n in cells), device=self.vae.device)
        if not count:
            return self.nothing_BFCHW
        dropped = 0 if self.past.has_begun else DROPPED
        pixels = [self.vae.decode_next(piece, self.past) for piece in latents_BFCHW.split(self.at_once, dim=1)]
        pixels_BFCHW = torch.cat(pixels, dim=1)[:, dropped:].float()
        return pixels_BFCHW.clamp_(0, 1).mul_(2).sub_(1)

    def flush(self) -> Tensor:
        self.past = TinyPast()
        return self.nothing_BFCHW


def choose_recent_blocks(blocks: Sequence[Tensor]) -> Sequence[Tensor]:
    """Choose the latest blocks on which pixels after them depend."""
    start, count = len(blocks), 0
    while start and count < TINY_WARM_UP:
        start -= 1
        count += blocks[start].shape[1]
    return blocks[start:]
