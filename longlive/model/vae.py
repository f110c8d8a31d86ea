"""The network of the Wan2.1 VAE (Wan2.1, arXiv 2503.20314 §4.1).

Every convolution looks back in time only, so a video streams exactly. A `Past` keeps the last frames that each of them
saw; it belongs to one video, not to the network.

Dimension key: B batch, F frames at the interface, C channels, T frames within a pass, H rows, W columns.
"""

from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor, nn

from ..digest import hash_tensors
from ..errors import WeightsError, shorten
from .convolution import use_fast_convolutions
from .dtypes import is_finite
from .vae_layers import Attention, CausalConv, Down, Norm, Past, Residual, Up, lay_out

# fmt: off
LATENT_MEAN = (-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
               0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921)
LATENT_STD = (2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
              3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160)
# fmt: on
LATENT_CHANNELS = len(LATENT_MEAN)
BASE_WIDTH, MAX_BASE_WIDTH = 96, 1 << 12  # channels: as released; the most that a file may have
MULTIPLIERS = (1, 2, 4, 4)  # width of each level over the base width
HALVES_TIME = (False, True, True)  # of each step between levels, from pixels to latents
ENCODER_BLOCKS, DECODER_BLOCKS = 2, 3  # residual blocks per level
LAYERS_TO_PIXEL_FRAMES = 2 * (DECODER_BLOCKS + 1)  # of the decoder's `upsamples`: the last of them doubles frames


class WanVAE(nn.Module):
    """All weights of the Wan2.1 VAE under their released names. 194 tensors; the released base width is 96."""

    def __init__(self, width: int, *, device=None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        like = {"device": device, "dtype": dtype}
        self.encoder = Encoder(width, **like)
        self.conv1 = nn.Conv3d(2 * LATENT_CHANNELS, 2 * LATENT_CHANNELS, 1, **like)
        self.conv2 = nn.Conv3d(LATENT_CHANNELS, LATENT_CHANNELS, 1, **like)
        self.decoder = Decoder(width, **like)

    @classmethod
    def of_weights(cls, weights: Mapping[str, Tensor], *, device=None, dtype: torch.dtype | None = None) -> "WanVAE":
        """Build the VAE of a state dict, frozen. Shares tensors that need no conversion. Raises WeightsError."""
        refuse_other_models(weights)
        vae = cls(weights["decoder.head.0.gamma"].shape[0], device="meta")
        refuse_other_shapes(weights, vae.state_dict())
        dtype = dtype or weights["conv2.weight"].dtype
        complex_ones = {key for key, weight in weights.items() if weight.is_complex()}  # refused just below
        moved = {
            key: weight if key in complex_ones else lay_out(weight.to(device, dtype)) for key, weight in weights.items()
        }
        refuse_other_numbers(weights, moved)
        vae.load_state_dict(moved, assign=True)
        return vae.requires_grad_(False)

    @property
    def device(self) -> torch.device:
        return self.conv2.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.conv2.weight.dtype

    @cached_property
    def identity(self) -> str:
        """What the pixels depend on, as words and a hash."""
        weights = {name: weight for name, weight in self.state_dict().items() if name.startswith(("conv2", "decoder"))}
        return f"{hash_tensors(weights)} on {self.device.type}"

    def decode_next(self, latents_BFCHW: Tensor, past: Past) -> Tensor:
        """Decode the latents that follow `past`, in one pass, without clamping; a video's first latent comes alone."""
        return self.run_decoder(latents_BFCHW, past).transpose(1, 2)

    def run_decoder(self, latents_BFCHW: Tensor, past: Past, num_layers: int | None = None) -> Tensor:
        """Run the decoder on latents, or only the first `num_layers` of its `upsamples`; update `past`."""
        z_BFCHW = denormalise(latents_BFCHW.to(self.device))
        with use_fast_convolutions(self.device):
            z_BCTHW = self.conv2(z_BFCHW.to(self.dtype).transpose(1, 2))
            x_BCTHW = self.decoder(z_BCTHW, past, num_layers)
        past.has_begun = True
        return x_BCTHW

    def encode_next(self, pixels_BFCHW: Tensor, past: Past) -> Tensor:
        """Encode the pixel frames that follow `past`, in one pass: a video's first frame alone, then multiples of 4."""
        return normalise(self.run_encoder(pixels_BFCHW, past).transpose(1, 2))

    def run_encoder(self, pixels_BFCHW: Tensor, past: Past) -> Tensor:
        """Run the encoder on pixel frames; return the means [B C T H W] in the VAE's space, and update `past`."""
        x_BCTHW = pixels_BFCHW.to(self.device, self.dtype).transpose(1, 2)
        with use_fast_convolutions(self.device):
            mean_BCTHW, _log_variance = self.conv1(self.encoder(x_BCTHW, past)).chunk(2, dim=1)
        past.has_begun = True
        return mean_BCTHW


def denormalise(latents_BFCHW: Tensor) -> Tensor:
    """Convert latents from the network's space to the VAE's. Divides by 1/std in their dtype, as the reference does."""
    return latents_BFCHW / view_per_channel(LATENT_STD, latents_BFCHW).reciprocal() + view_per_channel(
        LATENT_MEAN, latents_BFCHW
    )


def normalise(z_BFCHW: Tensor) -> Tensor:
    """Convert latents from the VAE's space to the network's."""
    return (z_BFCHW - view_per_channel(LATENT_MEAN, z_BFCHW)) * view_per_channel(LATENT_STD, z_BFCHW).reciprocal()


def view_per_channel(values: tuple[float, ...], like_BFCHW: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like_BFCHW.dtype, device=like_BFCHW.device).view(-1, 1, 1)


class Encoder(nn.Module):
    """Pixels to the mean and log variance of latents, through four levels of falling size."""

    def __init__(self, width: int, **like) -> None:
        super().__init__()
        widths = [width * m for m in MULTIPLIERS]
        self.conv1 = CausalConv(3, width, **like)
        layers, wide = [], width
        for level, next_wide in enumerate(widths):
            for _ in range(ENCODER_BLOCKS):
                layers.append(Residual(wide, next_wide, **like))
                wide = next_wide
            if level < len(HALVES_TIME):
                layers.append(Down(wide, in_time=HALVES_TIME[level], **like))
        self.downsamples = nn.ModuleList(layers)
        self.middle = make_middle(wide, **like)
        self.head = make_head(wide, 2 * LATENT_CHANNELS, **like)

    def forward(self, x_BCTHW: Tensor, past: Past) -> Tensor:
        x_BCTHW = self.conv1(past.join(self.conv1, x_BCTHW))
        for layer in (*self.downsamples, *self.middle):
            x_BCTHW = layer(x_BCTHW, past)
        norm, _, conv = self.head
        return conv(past.join(conv, x_BCTHW, norm))


class Decoder(nn.Module):
    """Latents to pixels, through four levels of rising size."""

    def __init__(self, width: int, **like) -> None:
        super().__init__()
        widths = [width * m for m in reversed(MULTIPLIERS)]
        doubles_time = HALVES_TIME[::-1]
        wide = widths[0]
        self.conv1 = CausalConv(LATENT_CHANNELS, wide, **like)
        self.middle = make_middle(wide, **like)
        layers = []
        for level, next_wide in enumerate(widths):
            for _ in range(DECODER_BLOCKS):
                layers.append(Residual(wide, next_wide, **like))
                wide = next_wide
            if level < len(doubles_time):
                layers.append(Up(wide, in_time=doubles_time[level], **like))
                wide //= 2
        self.upsamples = nn.ModuleList(layers)
        self.head = make_head(wide, 3, **like)

    def forward(self, z_BCTHW: Tensor, past: Past, num_layers: int | None = None) -> Tensor:
        """Return pixels, or with `num_layers` the output of that many of `upsamples`."""
        x_BCTHW = self.conv1(past.join(self.conv1, z_BCTHW))
        for layer in (*self.middle, *self.upsamples[:num_layers][:LAYERS_TO_PIXEL_FRAMES]):
            x_BCTHW = layer(x_BCTHW, past)
        if num_layers is not None and num_layers <= LAYERS_TO_PIXEL_FRAMES:
            return x_BCTHW
        if not past.frames_at_once:
            return self._finish(x_BCTHW, past, num_layers)
        pieces = x_BCTHW.split(past.frames_at_once, dim=2)
        return torch.cat([self._finish(piece, past, num_layers) for piece in pieces], dim=2)

    def _finish(self, x_BCTHW: Tensor, past: Past, num_layers: int | None) -> Tensor:
        """Run the layers after the last that doubles frames. They need most memory, so frames may come in pieces."""
        for layer in self.upsamples[LAYERS_TO_PIXEL_FRAMES:num_layers]:
            x_BCTHW = layer(x_BCTHW, past)
        if num_layers is not None:
            return x_BCTHW
        norm, _, conv = self.head
        return conv(past.join(conv, x_BCTHW, norm))


def make_middle(width: int, **like) -> nn.ModuleList:
    return nn.ModuleList([Residual(width, width, **like), Attention(width, **like), Residual(width, width, **like)])


def make_head(width: int, channels: int, **like) -> nn.ModuleList:
    return nn.ModuleList([Norm(width, 3, **like), nn.SiLU(), CausalConv(width, channels, **like)])


CURE = "use Wan2.1_VAE.pth or wan_2.1_vae.safetensors"


def refuse_other_models(weights: Mapping[str, Tensor]) -> None:
    """Raise WeightsError for weights that are visibly not of a Wan2.1 VAE."""
    if any(key.startswith(("decoder.up_blocks.", "decoder.mid_block.")) for key in weights):
        raise WeightsError(f"the VAE has the key names of diffusers, expected those of the original release; {CURE}")
    if not {"decoder.head.0.gamma", "conv2.weight"} <= weights.keys():
        found = f"{len(weights)} tensors such as {shorten(min(weights))!r}" if weights else "no tensors"
        raise WeightsError(f"this is not the Wan2.1 VAE: found {found}, expected 'decoder.head.0.gamma'; {CURE}")
    channels, width = (weights[key].shape[:1].numel() for key in ("conv2.weight", "decoder.head.0.gamma"))
    if not 0 < width <= MAX_BASE_WIDTH:
        raise WeightsError(f"the VAE is {width} wide, expected 1 to {MAX_BASE_WIDTH}; {CURE}")
    if channels != LATENT_CHANNELS:
        raise WeightsError(
            f"the VAE has {channels} latent channels (Wan2.2's has 48), expected Wan2.1's {LATENT_CHANNELS}; {CURE}"
        )


def refuse_other_shapes(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, cure: str = CURE) -> None:
    """Raise WeightsError unless names and shapes are exactly the expected ones."""
    missing, leftover = expected.keys() - weights.keys(), weights.keys() - expected.keys()
    if missing:
        raise WeightsError(f"the VAE lacks {len(missing)} of its {len(expected)} tensors: {min(missing)!r}…; {cure}")
    if leftover:
        raise WeightsError(f"the VAE has {len(leftover)} tensors too many: {shorten(min(leftover))!r}…; {cure}")
    for key, tensor in expected.items():
        found, wanted = list(weights[key].shape), list(tensor.shape)
        if found != wanted:
            raise WeightsError(f"the VAE's {key!r} has shape {found}, expected {wanted}; {cure}")


def refuse_other_numbers(weights: Mapping[str, Tensor], moved: Mapping[str, Tensor], *, cure: str = CURE) -> None:
    """Raise WeightsError unless all weights were floating-point numbers and are finite after their conversion."""
    for key, weight in weights.items():
        if not weight.is_floating_point() or not is_finite(moved[key]):
            found = f"{weight.dtype}, as {moved[key].dtype}"
            raise WeightsError(f"the VAE holds NaN, infinity or whole numbers in {key!r} ({found}); {cure}")
