"""The Wan2.1 VAE, decoding and encoding a video of any length piece by piece (Wan2.1, arXiv 2503.20314 §4.1).

Knows no file and no sampler. Every convolution looks back in time only, so a video streams exactly: what each of them
saw last is kept in a `Past`, which belongs to one video and not to the network.

Dimension key: B batch, F frames, C channels, T frames of one pass, H rows, W columns, N cells of a frame.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Protocol

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..config import PIXEL_FRAMES_PER_FRAME, PIXELS_PER_CELL
from ..digest import digest_of_tensors
from ..errors import CheckpointError
from ..finite import is_finite
from ..untrusted import brief
from .convolution import fast_convolutions

# fmt: off
LATENT_MEAN = (-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
               0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921)
LATENT_STD = (2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
              3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160)
# fmt: on
LATENT_CHANNELS = len(LATENT_MEAN)
MAX_WIDTH = 1 << 12  # of a base width, which is 96 as released
MULTIPLIERS = (1, 2, 4, 4)  # width of each level over the base width
HALVES_TIME = (False, True, True)  # of each step between levels, from pixels to latents
ENCODER_BLOCKS, DECODER_BLOCKS = 2, 3  # residual blocks a level
LAYERS_OF_LATENTS = 2 * (DECODER_BLOCKS + 1)  # of the decoder's `upsamples`, up to the last that doubles frames
TINY = 1e-24  # mean square of a position that is zero
LOOKBACK = 2  # frames before a frame that a convolution sees
TILE, TILE_OVERLAP = 32, 8  # cells of 8 pixels
AT_ONCE = 3  # latents of one pass: a third of the time of 1 on a CPU; the cut of a video moves its last bits (4e-6)


class VideoDecoder(Protocol):
    """Anything that turns the latents of one video into its pixels, in order and piece by piece."""

    def push(self, latents_BFCHW: Tensor) -> Tensor:
        """Take the next latents, as the network makes them; return the pixel frames now known [B F 3 H W], -1..1."""
        ...

    def flush(self) -> Tensor:
        """End the video: return the pixel frames still due and forget it."""
        ...


class ResumableDecoder(VideoDecoder, Protocol):
    """A `VideoDecoder` that can begin in the middle of a video."""

    @property
    def identity(self) -> str:
        """That of weights and arithmetic: equal ones make equal pixels."""
        ...

    def catch_up(self, blocks: Sequence[Tensor]) -> None:
        """Begin a video with latents [B F C h w] whose pixels are known; what is pushed next follows on them.

        The pixels to come are those of a decoder to which all of `blocks` was pushed, one by one.
        """
        ...


class VideoEncoder(Protocol):
    """Anything that turns the pixels of one video into its latents; those `push` still owes come with `flush`."""

    def push(self, pixels_BFCHW: Tensor) -> Tensor: ...
    def flush(self) -> Tensor: ...


class StreamingDecoder:
    """A `VideoDecoder` over our own VAE: the first latent gives 1 pixel frame, each later one 4, without delay.

    However the latents are cut into pushes, even into none at all, the pixels are those of one decode of the whole.
    """

    def __init__(self, vae: "WanVAE", *, at_once: int = AT_ONCE, frames_at_once: int | None = None) -> None:
        self.vae, self.at_once, self.past = vae, at_once, Past(frames_at_once)
        self.nothing_BFCHW = torch.empty(1, 0, 3, 0, 0)

    @property
    def identity(self) -> str:
        return f"ours, {self.at_once} at once, {self.vae.identity}"

    @torch.no_grad()
    def catch_up(self, blocks: Sequence[Tensor]) -> None:
        self.past, recent = Past(self.past.frames_at_once), recent_blocks(blocks)
        distance = sum(block.shape[1] for block in recent)
        for block in recent:
            for piece in cut(block, begun=self.past.begun, at_once=self.at_once):
                distance -= piece.shape[1]
                self.vae.remember(piece, self.past, layers_needed(distance))

    @torch.no_grad()
    def push(self, latents_BFCHW: Tensor) -> Tensor:
        batch, _, _, *cells = latents_BFCHW.shape
        self.nothing_BFCHW = torch.empty(batch, 0, 3, *(PIXELS_PER_CELL * n for n in cells), device=self.vae.device)
        pieces = cut(latents_BFCHW, begun=self.past.begun, at_once=self.at_once)
        pixels = [self.vae.decode_next(piece, self.past).float().clamp_(-1, 1) for piece in pieces]
        return torch.cat(pixels, dim=1) if pixels else self.nothing_BFCHW

    def flush(self) -> Tensor:
        self.past = Past(self.past.frames_at_once)
        return self.nothing_BFCHW


class TiledDecoder:
    """A `ResumableDecoder` for a device too small for a whole picture: tiles, one after another, frame by frame.

    Exact in time. A tile does not see beyond its edge, so tiles overlap and fade into each other. What they saw last
    waits on the CPU.
    """

    def __init__(self, vae: "WanVAE", *, tile: int = TILE, overlap: int = TILE_OVERLAP) -> None:
        self.vae, self.tile, self.overlap = vae, tile, overlap
        self.decoders: dict[tuple[int, int], StreamingDecoder] = {}  # by the first row and column of a tile
        self.nothing_BFCHW = torch.empty(1, 0, 3, 0, 0)

    @property
    def identity(self) -> str:
        return f"tiles of {self.tile} with {self.overlap}, {self.vae.identity}"

    def catch_up(self, blocks: Sequence[Tensor]) -> None:
        self.flush()
        for row, column in self._tiles(*blocks[0].shape[-2:]) if blocks else ():
            with self._decoder(row, column) as decoder:
                decoder.catch_up([self._crop(block, row, column) for block in blocks])

    def push(self, latents_BFCHW: Tensor) -> Tensor:
        if not latents_BFCHW.shape[1]:
            return self.nothing_BFCHW
        total_BFCHW, weights_HW = None, torch.zeros([PIXELS_PER_CELL * n for n in latents_BFCHW.shape[-2:]])
        for row, column in self._tiles(*latents_BFCHW.shape[-2:]):
            with self._decoder(row, column) as decoder:
                pixels_BFCHW = decoder.push(self._crop(latents_BFCHW, row, column)).cpu()
            if total_BFCHW is None:
                total_BFCHW = torch.zeros(*pixels_BFCHW.shape[:3], *weights_HW.shape)
            rows, columns = pixels_BFCHW.shape[-2:]
            place = (
                ...,
                *(slice(PIXELS_PER_CELL * a, PIXELS_PER_CELL * a + b) for a, b in ((row, rows), (column, columns))),
            )
            fade_HW = self._fade(rows)[:, None] * self._fade(columns)
            total_BFCHW[place] += fade_HW * pixels_BFCHW
            weights_HW[place] += fade_HW
        assert total_BFCHW is not None
        self.nothing_BFCHW = total_BFCHW[:, :0]
        return total_BFCHW / weights_HW

    def flush(self) -> Tensor:
        self.decoders.clear()
        return self.nothing_BFCHW

    @contextmanager
    def _decoder(self, row: int, column: int) -> Iterator[StreamingDecoder]:
        if (row, column) not in self.decoders:
            self.decoders[row, column] = StreamingDecoder(self.vae, at_once=1, frames_at_once=1)
        decoder = self.decoders[row, column]
        decoder.past.move(self.vae.device)
        try:
            yield decoder
        finally:
            decoder.past.move(torch.device("cpu"))

    def _tiles(self, rows: int, columns: int) -> list[tuple[int, int]]:
        return [(row, column) for row in self._starts(rows) for column in self._starts(columns)]

    def _starts(self, cells: int) -> list[int]:
        return [*range(0, max(cells - self.tile, 0), self.tile - self.overlap), max(cells - self.tile, 0)]

    def _crop(self, latents_BFCHW: Tensor, row: int, column: int) -> Tensor:
        return latents_BFCHW[..., row : row + self.tile, column : column + self.tile]

    def _fade(self, pixels: int) -> Tensor:
        """How much each pixel of a tile counts: less towards both ends, never nothing."""
        overlap = PIXELS_PER_CELL * self.overlap
        inwards = torch.arange(pixels) + 1.0
        return torch.minimum(inwards, inwards.flip(0)).div(overlap).clamp(max=1)


class StreamingEncoder:
    """Pixels in, latents out: the first pixel frame gives a latent, then every 4 do; fewer wait for the next push."""

    def __init__(self, vae: "WanVAE", *, at_once: int = AT_ONCE) -> None:
        self.vae, self.at_once, self.past = vae, PIXEL_FRAMES_PER_FRAME * at_once, Past()
        self.waiting_BFCHW: Tensor | None = None
        self.nothing_BFCHW = torch.empty(1, 0, LATENT_CHANNELS, 0, 0)

    @torch.no_grad()
    def push(self, pixels_BFCHW: Tensor) -> Tensor:
        """Take the next pixel frames [B F 3 H W], -1..1; return the latents now known, normalised and not sampled."""
        if any(n % PIXELS_PER_CELL for n in pixels_BFCHW.shape[-2:]):
            height, width = pixels_BFCHW.shape[-2:]
            raise ValueError(f"pixels are {width} x {height}; width and height must be multiples of {PIXELS_PER_CELL}")
        if self.waiting_BFCHW is not None:
            pixels_BFCHW = torch.cat([self.waiting_BFCHW.to(pixels_BFCHW), pixels_BFCHW], dim=1)
        batch, count, _, *size = pixels_BFCHW.shape
        self.nothing_BFCHW = pixels_BFCHW.new_empty(batch, 0, LATENT_CHANNELS, *(n // PIXELS_PER_CELL for n in size))

        num_waiting = (count - (not self.past.begun)) % PIXEL_FRAMES_PER_FRAME if count else 0
        ready_BFCHW, waiting_BFCHW = pixels_BFCHW.split([count - num_waiting, num_waiting], dim=1)
        self.waiting_BFCHW = waiting_BFCHW.clone()  # a view would keep all of the push alive
        pieces = cut(ready_BFCHW, begun=self.past.begun, at_once=self.at_once)
        latents = [self.vae.encode_next(piece, self.past) for piece in pieces]
        return torch.cat(latents, dim=1) if latents else self.nothing_BFCHW

    def flush(self) -> Tensor:
        """End the video: nothing is due; up to 3 pixel frames that make no latent are dropped, as in the reference."""
        self.past, self.waiting_BFCHW = Past(), None
        return self.nothing_BFCHW


def decode(vae: "WanVAE", latents_BFCHW: Tensor) -> Tensor:
    """Decode a whole video of n latents into its 4 n - 3 pixel frames [B F 3 H W], float32, -1..1."""
    return StreamingDecoder(vae).push(latents_BFCHW)


def encode(vae: "WanVAE", pixels_BFCHW: Tensor) -> Tensor:
    """Encode a whole video [B F 3 H W], -1..1, into normalised latents; pixel frames beyond 4 n - 3 are dropped."""
    return StreamingEncoder(vae).push(pixels_BFCHW)


def cut(video_BFCHW: Tensor, *, begun: bool, at_once: int) -> list[Tensor]:
    """Cut frames into passes: the first of a video alone, then `at_once` at a time."""
    alone = 0 if begun else min(1, video_BFCHW.shape[1])
    pieces = video_BFCHW[:, :alone], *video_BFCHW[:, alone:].split(at_once, dim=1)
    return [piece for piece in pieces if piece.shape[1]]


def recent_blocks(blocks: Sequence[Tensor], together: int = 1) -> Sequence[Tensor]:
    """The blocks that the pixels after them depend on, and some before these, which may then be cut as a beginning.

    `together` latents make a pass after the first one: the frame at which the first block begins is a multiple of it.
    """
    start, count = len(blocks), 0
    while start and (count < WARM_UP or start == len(blocks)):
        start -= 1
        count += blocks[start].shape[1]
    start -= start > 0  # its passes are cut in another way, so nothing may depend on it
    while start and sum(block.shape[1] for block in blocks[:start]) % together:
        start -= 1
    return blocks[start:]


def layers_needed(distance: int) -> int | None:
    """How many of the decoder's `upsamples` latents must pass that end `distance` latents before the first wanted one.

    None for the whole decoder. Layers of few cells look back far, those at full size, which cost most, hardly.
    """
    count = sum(reach > distance for reach in REACHES)
    return count if count < len(REACHES) else None


def _reaches() -> tuple[list[int], int]:
    """How many latents back each layer of `upsamples` and the whole decoder matter to the next pixel frame."""
    frames, frames_per_latent, reaches = LOOKBACK, PIXEL_FRAMES_PER_FRAME, []
    for level, doubles_time in reversed([*enumerate((*HALVES_TIME[::-1], None))]):
        if doubles_time:
            frames, frames_per_latent = -(-frames // 2) + LOOKBACK, frames_per_latent // 2
        if level < len(HALVES_TIME):
            reaches.append(-(-frames // frames_per_latent))
        for _ in range(DECODER_BLOCKS):
            frames += 2 * LOOKBACK
            reaches.append(-(-frames // frames_per_latent))
    return reaches[::-1], frames + (2 * 2 + 1) * LOOKBACK  # two residual blocks in the middle, and the first one


REACHES, WARM_UP = _reaches()


class Past:
    """The frames every convolution saw last in one video; zeros before its beginning."""

    def __init__(self, frames_at_once: int | None = None) -> None:
        self.begun = False  # whether the first frame has passed
        self.frames_at_once = frames_at_once  # through the costly layers; None for all there are
        self.seen: dict[nn.Module, Tensor] = {}

    def move(self, device: torch.device) -> None:
        self.seen = {layer: frames.to(device) for layer, frames in self.seen.items()}

    def join(self, layer: nn.Module, x_BCTHW: Tensor, length: int) -> Tensor:
        """Return `x` behind the `length` frames `layer` saw before it, and remember the last ones for next time."""
        seen_BCTHW = self.seen.get(layer)
        if seen_BCTHW is None:
            joined_BCTHW = F.pad(x_BCTHW, (0, 0, 0, 0, length, 0))
        else:
            joined_BCTHW = torch.cat([seen_BCTHW, x_BCTHW], dim=2)
        self.seen[layer] = joined_BCTHW[:, :, -length:].clone()  # a view would keep all of the pass alive
        return joined_BCTHW


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
        """The VAE a state dict holds, frozen; tensors that need no move are shared. Raises CheckpointError."""
        refuse_other_models(weights)
        vae = cls(weights["decoder.head.0.gamma"].shape[0], device="meta")
        refuse_other_shapes(weights, vae.state_dict())
        dtype = dtype or weights["conv2.weight"].dtype
        complex_ones = {key for key, weight in weights.items() if weight.is_complex()}  # refused just below
        moved = {key: weight if key in complex_ones else weight.to(device, dtype) for key, weight in weights.items()}
        refuse_other_numbers(weights, moved)
        vae.load_state_dict(moved, assign=True)
        return vae.requires_grad_(False)

    @property
    def device(self) -> torch.device:
        return self.conv2.weight.device

    @cached_property
    def identity(self) -> str:
        """What its pixels depend on, as words and a hash."""
        weights = {name: weight for name, weight in self.state_dict().items() if name.startswith(("conv2", "decoder"))}
        return f"{digest_of_tensors(weights)} on {self.device.type}"

    def decode_next(self, latents_BFCHW: Tensor, past: Past) -> Tensor:
        """Decode the latents that follow `past` in one pass; the first of a video must come alone. Not clamped."""
        return self.remember(latents_BFCHW, past).transpose(1, 2)

    def remember(self, latents_BFCHW: Tensor, past: Past, num_layers: int | None = None) -> Tensor:
        """The same, but through the first `num_layers` of the decoder's `upsamples` alone, which then know them."""
        z_BFCHW = denormalised(latents_BFCHW.to(self.device))
        with fast_convolutions(self.device):
            z_BCTHW = self.conv2(z_BFCHW.to(self.conv2.weight.dtype).transpose(1, 2))
            x_BCTHW = self.decoder(z_BCTHW, past, num_layers)
        past.begun = True
        return x_BCTHW

    def encode_next(self, pixels_BFCHW: Tensor, past: Past) -> Tensor:
        """Encode the pixel frames that follow `past` in one pass: the first of a video alone, then fours."""
        x_BCTHW = pixels_BFCHW.to(self.device, self.conv1.weight.dtype).transpose(1, 2)
        with fast_convolutions(self.device):
            mean_BCTHW, _log_variance = self.conv1(self.encoder(x_BCTHW, past)).chunk(2, dim=1)
        past.begun = True
        return normalised(mean_BCTHW.transpose(1, 2))


def denormalised(latents_BFCHW: Tensor) -> Tensor:
    """Bring latents from the network's space to the VAE's. Divides by 1/std in the latents' dtype, as the reference."""
    return latents_BFCHW / per_channel(LATENT_STD, latents_BFCHW).reciprocal() + per_channel(LATENT_MEAN, latents_BFCHW)


def normalised(z_BFCHW: Tensor) -> Tensor:
    """Bring latents from the VAE's space to the network's."""
    return (z_BFCHW - per_channel(LATENT_MEAN, z_BFCHW)) * per_channel(LATENT_STD, z_BFCHW).reciprocal()


def per_channel(values: tuple[float, ...], like_BFCHW: Tensor) -> Tensor:
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
        self.middle = middle(wide, **like)
        self.head = head(wide, 2 * LATENT_CHANNELS, **like)

    def forward(self, x_BCTHW: Tensor, past: Past) -> Tensor:
        x_BCTHW = self.conv1(x_BCTHW, past)
        for layer in (*self.downsamples, *self.middle):
            x_BCTHW = layer(x_BCTHW, past)
        norm, silu, conv = self.head
        return conv(silu(norm(x_BCTHW)), past)


class Decoder(nn.Module):
    """Latents to pixels, through four levels of rising size."""

    def __init__(self, width: int, **like) -> None:
        super().__init__()
        widths = [width * m for m in reversed(MULTIPLIERS)]
        doubles_time = HALVES_TIME[::-1]
        wide = widths[0]
        self.conv1 = CausalConv(LATENT_CHANNELS, wide, **like)
        self.middle = middle(wide, **like)
        layers = []
        for level, next_wide in enumerate(widths):
            for _ in range(DECODER_BLOCKS):
                layers.append(Residual(wide, next_wide, **like))
                wide = next_wide
            if level < len(doubles_time):
                layers.append(Up(wide, in_time=doubles_time[level], **like))
                wide //= 2
        self.upsamples = nn.ModuleList(layers)
        self.head = head(wide, 3, **like)

    def forward(self, z_BCTHW: Tensor, past: Past, num_layers: int | None = None) -> Tensor:
        """Pixels; with `num_layers`, what so many of `upsamples` make of the latents."""
        x_BCTHW = self.conv1(z_BCTHW, past)
        for layer in (*self.middle, *self.upsamples[:num_layers][:LAYERS_OF_LATENTS]):
            x_BCTHW = layer(x_BCTHW, past)
        if num_layers is not None and num_layers <= LAYERS_OF_LATENTS:
            return x_BCTHW
        pieces = x_BCTHW.split(past.frames_at_once or x_BCTHW.shape[2], dim=2)
        return torch.cat([self._finish(piece, past, num_layers) for piece in pieces], dim=2)

    def _finish(self, x_BCTHW: Tensor, past: Past, num_layers: int | None) -> Tensor:
        """The layers behind the last one that makes frames, which take most of the memory; any cut in time will do."""
        for layer in self.upsamples[LAYERS_OF_LATENTS:num_layers]:
            x_BCTHW = layer(x_BCTHW, past)
        if num_layers is not None:
            return x_BCTHW
        norm, silu, conv = self.head
        return conv(silu(norm(x_BCTHW)), past)


def middle(width: int, **like) -> nn.ModuleList:
    return nn.ModuleList([Residual(width, width, **like), Attention(width, **like), Residual(width, width, **like)])


def head(width: int, channels: int, **like) -> nn.ModuleList:
    return nn.ModuleList([Norm(width, 3, **like), nn.SiLU(inplace=True), CausalConv(width, channels, **like)])


class Residual(nn.Module):
    """Two causal convolutions beside a shortcut."""

    def __init__(self, width_in: int, width_out: int, **like) -> None:
        super().__init__()
        self.residual = nn.ModuleList(
            [
                Norm(width_in, 3, **like),
                nn.SiLU(inplace=True),
                CausalConv(width_in, width_out, **like),
                Norm(width_out, 3, **like),
                nn.SiLU(inplace=True),
                nn.Identity(),  # a dropout in training; keeps the released numbering
                CausalConv(width_out, width_out, **like),
            ]
        )
        self.shortcut = nn.Identity() if width_in == width_out else nn.Conv3d(width_in, width_out, 1, **like)

    def forward(self, x_BCTHW: Tensor, past: Past) -> Tensor:
        norm1, silu, conv1, norm2, _, _, conv2 = self.residual
        y_BCTHW = conv1(silu(norm1(x_BCTHW)), past)
        y_BCTHW = conv2(silu(norm2(y_BCTHW)), past)
        return y_BCTHW.add_(self.shortcut(x_BCTHW))


class Attention(nn.Module):
    """One head of attention among the cells of each frame."""

    def __init__(self, width: int, **like) -> None:
        super().__init__()
        self.norm = Norm(width, 2, **like)
        self.to_qkv = nn.Conv2d(width, 3 * width, 1, **like)
        self.proj = nn.Conv2d(width, width, 1, **like)

    def forward(self, x_BCTHW: Tensor, _past: Past) -> Tensor:
        cells_BTNC = rearrange(self.norm(x_BCTHW), "b c t h w -> b t (h w) c")
        qkv_BTNC = F.linear(cells_BTNC, self.to_qkv.weight.flatten(1), self.to_qkv.bias)
        q_BTNC, k_BTNC, v_BTNC = qkv_BTNC.chunk(3, dim=-1)
        cells_BTNC = F.scaled_dot_product_attention(q_BTNC, k_BTNC, v_BTNC)
        cells_BTNC = F.linear(cells_BTNC, self.proj.weight.flatten(1), self.proj.bias)
        return x_BCTHW + rearrange(cells_BTNC, "b t (h w) c -> b c t h w", h=x_BCTHW.shape[3])


class Down(nn.Module):
    """Halve rows and columns and, where asked, frames."""

    def __init__(self, width: int, *, in_time: bool, **like) -> None:
        super().__init__()
        self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(width, width, 3, stride=2, **like))
        self.time_conv = nn.Conv3d(width, width, (3, 1, 1), stride=(2, 1, 1), **like) if in_time else None

    def forward(self, x_BCTHW: Tensor, past: Past) -> Tensor:
        x_BCTHW = frame_by_frame(self.resample, x_BCTHW)
        if self.time_conv is None:
            return x_BCTHW
        joined_BCTHW = past.join(self.time_conv, x_BCTHW, 1)
        return self.time_conv(joined_BCTHW) if past.begun else x_BCTHW


class Up(nn.Module):
    """Double rows and columns while halving the width, and double frames where asked.

    The first frame of a video stays single and is unseen by those after it: the second finds zeros before it.
    """

    def __init__(self, width: int, *, in_time: bool, **like) -> None:
        super().__init__()
        # Nearest cells are copies, exact in any dtype: the reference's way through float32 is not needed.
        upsample = nn.Upsample(scale_factor=2, mode="nearest-exact")
        self.resample = nn.Sequential(upsample, nn.Conv2d(width, width // 2, 3, padding=1, **like))
        self.time_conv = CausalConv(width, 2 * width, kernel=(3, 1, 1), **like) if in_time else None

    def forward(self, x_BCTHW: Tensor, past: Past) -> Tensor:
        if self.time_conv is not None and past.begun:
            x_BCTHW = rearrange(self.time_conv(x_BCTHW, past), "b (two c) t h w -> b c (t two) h w", two=2)
        return frame_by_frame(self.resample, x_BCTHW)


def frame_by_frame(layers: nn.Sequential, x_BCTHW: Tensor) -> Tensor:
    frames = layers(rearrange(x_BCTHW, "b c t h w -> (b t) c h w"))
    return rearrange(frames, "(b t) c h w -> b c t h w", b=x_BCTHW.shape[0])


class CausalConv(nn.Conv3d):
    """A convolution that sees a frame and the two before it, and keeps rows and columns."""

    def __init__(self, width_in: int, width_out: int, *, kernel: tuple[int, int, int] = (3, 3, 3), **like) -> None:
        super().__init__(width_in, width_out, kernel, padding=(0, kernel[1] // 2, kernel[2] // 2), **like)

    def forward(self, x_BCTHW: Tensor, past: Past) -> Tensor:
        return super().forward(past.join(self, x_BCTHW, self.kernel_size[0] - 1))


class Norm(nn.Module):
    """Scale every position to a root mean square of `gamma` over its channels."""

    def __init__(self, width: int, trailing_axes: int, **like) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width, *(1,) * trailing_axes, **like))

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        mean_square = x_BCTHW.square().mean(dim=1, keepdim=True, dtype=torch.float32)
        return x_BCTHW * mean_square.clamp_min_(TINY).rsqrt_().to(x_BCTHW.dtype) * self.gamma.view(-1, 1, 1, 1)


CURE = "use Wan2.1_VAE.pth or wan_2.1_vae.safetensors"


def refuse_other_models(weights: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError for weights that are not a Wan2.1 VAE's at first sight."""
    if any(key.startswith(("decoder.up_blocks.", "decoder.mid_block.")) for key in weights):
        raise CheckpointError(f"the VAE has the key names of diffusers, expected those of the original release; {CURE}")
    if not {"decoder.head.0.gamma", "conv2.weight"} <= weights.keys():
        found = f"{len(weights)} tensors such as {brief(min(weights))!r}" if weights else "no tensors"
        raise CheckpointError(f"this is not the Wan2.1 VAE: found {found}, expected 'decoder.head.0.gamma'; {CURE}")
    channels, width = (weights[key].shape[:1].numel() for key in ("conv2.weight", "decoder.head.0.gamma"))
    if not 0 < width <= MAX_WIDTH:
        raise CheckpointError(f"the VAE is {width} wide, expected 1 to {MAX_WIDTH}; {CURE}")
    if channels != LATENT_CHANNELS:
        raise CheckpointError(
            f"the VAE has {channels} latent channels (Wan2.2's has 48), expected Wan2.1's {LATENT_CHANNELS}; {CURE}"
        )


def refuse_other_shapes(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError unless names and shapes are exactly the expected ones."""
    missing, leftover = expected.keys() - weights.keys(), weights.keys() - expected.keys()
    if missing:
        raise CheckpointError(f"the VAE lacks {len(missing)} of its {len(expected)} tensors: {min(missing)!r}…; {CURE}")
    if leftover:
        raise CheckpointError(f"the VAE has {len(leftover)} tensors too many: {brief(min(leftover))!r}…; {CURE}")
    for key, tensor in expected.items():
        found, wanted = list(weights[key].shape), list(tensor.shape)
        if found != wanted:
            raise CheckpointError(f"the VAE's {key!r} has shape {found}, expected {wanted}; {CURE}")


def refuse_other_numbers(weights: Mapping[str, Tensor], moved: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError unless all weights were floating-point numbers and are finite where they were moved to."""
    for key, weight in weights.items():
        if not weight.is_floating_point() or not is_finite(moved[key]):
            found = f"{weight.dtype}, as {moved[key].dtype}"
            raise CheckpointError(f"the VAE holds NaN, infinity or whole numbers in {key!r} ({found}); {CURE}")
