"""Decoding and encoding a video of any length piece by piece.

Dimension key: B batch, F frames, C channels, H rows, W columns.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from ..units import PIXEL_FRAMES_PER_FRAME, PIXELS_PER_CELL
from .vae import DECODER_BLOCKS, HALVES_TIME, LATENT_CHANNELS, WanVAE
from .vae_layers import LOOKBACK, Past

TILE, TILE_OVERLAP = 32, 8  # cells of 8 pixels
LATENTS_PER_PASS = 3  # on a CPU a third of the time of 1 by 1; pixels differ by at most 4e-6


class VideoDecoder(Protocol):
    """Turns the latents of one video into its pixels, in order and piece by piece."""

    def push(self, latents_BFCHW: Tensor, /) -> Tensor:
        """Take the next latents, as the network makes them; return the new pixel frames [B F 3 H W], -1..1."""
        ...

    def flush(self) -> Tensor:
        """End the video: return the remaining pixel frames and forget it."""
        ...


class ResumableDecoder(VideoDecoder, Protocol):
    """A `VideoDecoder` that can begin in the middle of a video."""

    @property
    def identity(self) -> str:
        """Names weights and arithmetic: decoders of equal identity make equal pixels."""
        ...

    def catch_up(self, blocks: Sequence[Tensor]) -> None:
        """Begin a video with latents [B F C h w] whose pixels are known; the next push continues after them.

        Later pixels are the same as if all of `blocks` had been pushed, one by one.
        """
        ...


class VideoEncoder(Protocol):
    """Turns the pixels of one video into its latents; `flush` returns those that `push` has not."""

    def push(self, pixels_BFCHW: Tensor, /) -> Tensor: ...
    def flush(self) -> Tensor: ...


class StreamingDecoder:
    """A `VideoDecoder` over our own VAE: the first latent gives 1 pixel frame, each later one 4, without delay.

    How latents are split into pushes changes pixels by rounding only (4e-6): they are those of one decode of the whole.
    """

    def __init__(self, vae: "WanVAE", *, at_once: int = LATENTS_PER_PASS, frames_at_once: int | None = None) -> None:
        self.vae, self.at_once, self.past = vae, at_once, Past(frames_at_once)
        self.nothing_BFCHW = torch.empty(1, 0, 3, 0, 0)

    @property
    def identity(self) -> str:
        return f"ours, {self.at_once} at once, {self.vae.identity}"

    @torch.no_grad()
    def catch_up(self, blocks: Sequence[Tensor]) -> None:
        self.past, recent = Past(self.past.frames_at_once), choose_warm_up_blocks(blocks)
        distance = sum(block.shape[1] for block in recent)
        for block in recent:
            for piece in split_passes(block, has_begun=self.past.has_begun, at_once=self.at_once):
                distance -= piece.shape[1]
                self.vae.run_decoder(piece, self.past, count_needed_layers(distance))

    @torch.no_grad()
    def push(self, latents_BFCHW: Tensor) -> Tensor:
        batch, _, _, *cells = latents_BFCHW.shape
        self.nothing_BFCHW = torch.empty(batch, 0, 3, *(PIXELS_PER_CELL * n for n in cells), device=self.vae.device)
        pieces = split_passes(latents_BFCHW, has_begun=self.past.has_begun, at_once=self.at_once)
        pixels = [self.vae.decode_next(piece, self.past).float().clamp_(-1, 1) for piece in pieces]
        return torch.cat(pixels, dim=1) if pixels else self.nothing_BFCHW

    def flush(self) -> Tensor:
        self.past = Past(self.past.frames_at_once)
        return self.nothing_BFCHW


class TiledDecoder:
    """A `ResumableDecoder` for a device too small for a whole picture: decodes tile by tile, each frame by frame.

    Nothing is lost in time. A tile does not see beyond its edge, so tiles overlap and are blended. The last frames
    they saw wait on the CPU.
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
        """Weigh the pixels of a tile: less towards both ends, never 0."""
        overlap = PIXELS_PER_CELL * self.overlap
        inwards = torch.arange(pixels) + 1.0
        return torch.minimum(inwards, inwards.flip(0)).div(overlap).clamp(max=1)


class StreamingEncoder:
    """A `VideoEncoder`: the first pixel frame gives a latent, then every 4 do; fewer wait for the next push."""

    def __init__(self, vae: "WanVAE", *, at_once: int = LATENTS_PER_PASS) -> None:
        self.vae, self.at_once, self.past = vae, PIXEL_FRAMES_PER_FRAME * at_once, Past()
        self.waiting_BFCHW: Tensor | None = None
        self.nothing_BFCHW = torch.empty(1, 0, LATENT_CHANNELS, 0, 0)

    @torch.no_grad()
    def push(self, pixels_BFCHW: Tensor) -> Tensor:
        """Take the next pixel frames [B F 3 H W], -1..1; return the new latents, normalised, as means."""
        if any(n % PIXELS_PER_CELL for n in pixels_BFCHW.shape[-2:]):
            height, width = pixels_BFCHW.shape[-2:]
            raise ValueError(f"pixels are {width} x {height}; width and height must be multiples of {PIXELS_PER_CELL}")
        if self.waiting_BFCHW is not None:
            pixels_BFCHW = torch.cat([self.waiting_BFCHW.to(pixels_BFCHW), pixels_BFCHW], dim=1)
        batch, count, _, *size = pixels_BFCHW.shape
        self.nothing_BFCHW = pixels_BFCHW.new_empty(batch, 0, LATENT_CHANNELS, *(n // PIXELS_PER_CELL for n in size))

        num_waiting = (count - (not self.past.has_begun)) % PIXEL_FRAMES_PER_FRAME if count else 0
        ready_BFCHW, waiting_BFCHW = pixels_BFCHW.split([count - num_waiting, num_waiting], dim=1)
        self.waiting_BFCHW = waiting_BFCHW.clone()  # a view would keep all of the push alive
        pieces = split_passes(ready_BFCHW, has_begun=self.past.has_begun, at_once=self.at_once)
        latents = [self.vae.encode_next(piece, self.past) for piece in pieces]
        return torch.cat(latents, dim=1) if latents else self.nothing_BFCHW

    def flush(self) -> Tensor:
        """End the video; drop up to 3 pixel frames that make no latent, as the reference does."""
        self.past, self.waiting_BFCHW = Past(), None
        return self.nothing_BFCHW


def decode(vae: "WanVAE", latents_BFCHW: Tensor) -> Tensor:
    """Decode a whole video of n latents into its 4 n - 3 pixel frames [B F 3 H W], float32, -1..1."""
    return StreamingDecoder(vae).push(latents_BFCHW)


def encode(vae: "WanVAE", pixels_BFCHW: Tensor) -> Tensor:
    """Encode a whole video [B F 3 H W], -1..1, into normalised latents; pixel frames beyond 4 n - 3 are dropped."""
    return StreamingEncoder(vae).push(pixels_BFCHW)


def split_passes(video_BFCHW: Tensor, *, has_begun: bool, at_once: int) -> list[Tensor]:
    """Split frames into passes: the first of a video alone, then `at_once` at a time."""
    alone = 0 if has_begun else min(1, video_BFCHW.shape[1])
    pieces = video_BFCHW[:, :alone], *video_BFCHW[:, alone:].split(at_once, dim=1)
    return [piece for piece in pieces if piece.shape[1]]


def choose_warm_up_blocks(blocks: Sequence[Tensor], together: int = 1) -> Sequence[Tensor]:
    """Choose the latest blocks with which a decoding may begin: pixels after them depend on no earlier block.

    After a first latent alone, `together` latents make one pass. So that passes split as in the whole video, the first
    chosen block begins at a multiple of it.
    """
    start, count = len(blocks), 0
    while start and (count < WARM_UP or start == len(blocks)):
        start -= 1
        count += blocks[start].shape[1]
    start -= start > 0  # one more: its first latent passes alone here, so no later pixel may depend on it
    while start and sum(block.shape[1] for block in blocks[:start]) % together:
        start -= 1
    return blocks[start:]


def count_needed_layers(distance: int) -> int | None:
    """Count the layers of `upsamples` that latents must pass if `distance` latents follow before the first wanted one.

    None means the whole decoder. Early layers look back far; the late ones, at full size, cost most and hardly do.
    """
    count = sum(reach > distance for reach in REACHES)
    return count if count < len(REACHES) else None


def _measure_reaches() -> tuple[list[int], int]:
    """Measure how many latents back each layer of `upsamples`, and the whole decoder, see."""
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


REACHES, WARM_UP = _measure_reaches()
