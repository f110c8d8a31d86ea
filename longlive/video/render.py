"""Renders blocks of latents into a video file; only new blocks are decoded and encoded.

Every block becomes a fragment of the file (`fragments.py`). It is stored under a hash of all that determines it: the
latents so far, the decoder and the encoder. Before the first block that is not in the store, the decoder catches up on
the latents so far (`catch_up`). So a video is the same to the byte however much of it the store has.
"""

import logging
from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..digest import hash_facts, hash_tensors
from ..model.vae_streams import ResumableDecoder
from ..session.block_store import Entry, Store
from .film import Film
from .fragments import Encoding, Fragment
from .pixels import enlarge, to_bytes

log = logging.getLogger(__name__)

FRAGMENT_VERSION = 2  # raised whenever the same latents would give other fragments, but for rounding
FRAGMENT_ENTRY = dict.fromkeys(("header", "media"), (None, torch.uint8)) | {"num_frames": ((1,), torch.int64)}
END_ENTRY = FRAGMENT_ENTRY | {"last": (None, torch.uint8), "size": ((2,), torch.int64)}  # rows, columns


class FragmentWriter(Protocol):
    """Where a video grows: a file (`VideoWriter`) or a film (`Film`)."""

    @property
    def encoding(self) -> Encoding: ...
    @property
    def num_frames(self) -> int: ...
    def append(self, fragment: Fragment, key: str = "") -> None:
        """Append the fragment of the next block; all that its bytes depend on is hashed as `key`."""
        ...


class VideoRenderer:
    """Appends blocks of latents to a video; fragments found in `store` are neither decoded nor encoded again.

    Over a film, it can go back: after `rewind` the film and all that follows are as if the video had gone no further.
    """

    def __init__(
        self, decoder: ResumableDecoder, writer: FragmentWriter, store: Store | None = None, *, enlarged: int = 1
    ) -> None:
        self.decoder, self.writer, self.store, self.enlarged = decoder, writer, store, enlarged
        self.num_decoded = 0  # blocks that were not found
        self._blocks: list[Tensor] = []
        self._follows = True  # whether the decoder has decoded the last block, or caught up on it
        self._last_FHWC: Tensor | None = None  # the newest pixel frame, where it was decoded
        self._identity = decoder.identity
        self._keys = [hash_facts([FRAGMENT_VERSION, self._identity, writer.encoding.identity, enlarged])]

    @property
    def num_blocks(self) -> int:
        """The blocks that the video shows."""
        return len(self._blocks)

    def render_block(self, latents_BFCHW: Tensor) -> None:
        """Append the next block of latents [1, F, C, h, w]."""
        key = self._hash_next(latents_BFCHW)
        entry = self.store.read(key, FRAGMENT_ENTRY) if self.store else None
        if entry:
            self._follows = False
            fragment = as_fragment(entry)
        else:
            fragment = self._encode(self._decode(latents_BFCHW))
            self._store(key, as_entry(fragment))
        follows, self._follows = self._follows, False  # if the disk refuses, the block may come again
        self.writer.append(fragment, key)
        self._keys.append(key)
        self._blocks.append(latents_BFCHW)
        self._follows = follows

    def finish(self) -> Tensor | None:
        """Append what the decoder still holds; return the last pixel frame [1, H, W, 3] as bytes, if there is one."""
        key = hash_facts([self._keys[-1], "end"])
        entry = self.store.read(key, END_ENTRY) if self.store else None
        if entry:
            self._append_end(as_fragment(entry), key)
            self.decoder.catch_up([])
            self._follows = False
            return entry["last"].view(1, *entry["size"].tolist(), 3)
        if not self._follows and self._blocks:
            last_BFCHW = self._blocks.pop()
            self._take_last(to_bytes(self._decode(last_BFCHW)))
            self._blocks.append(last_BFCHW)
        fragment = self._encode(self.decoder.flush())
        self._follows = False
        if self._last_FHWC is not None:
            rows, columns = self._last_FHWC.shape[1:3]
            end = {"last": self._last_FHWC.flatten(), "size": torch.tensor([rows, columns])}
            self._store(key, as_entry(fragment) | end)
        self._append_end(fragment, key)
        return self._last_FHWC

    def rewind(self, num_blocks: int) -> None:
        """Drop all blocks of a film but the first ones, also after `finish`; the next block follows them.

        Raises VideoError if the disk refuses.
        """
        assert isinstance(self.writer, Film), self.writer
        assert 0 <= num_blocks <= len(self._blocks), num_blocks
        self.writer.rewind(num_blocks)
        if num_blocks < len(self._blocks):
            del self._blocks[num_blocks:], self._keys[num_blocks + 1 :]
            self._follows, self._last_FHWC = False, None

    def resume(self, blocks: Sequence[Tensor]) -> int:
        """Begin with a film that may show some of these blocks already; return how many, and drop what it shows else.

        Raises VideoError if the disk refuses.
        """
        assert isinstance(self.writer, Film), self.writer
        assert not self._blocks, len(self._blocks)
        for latents_BFCHW, piece in zip(blocks, self.writer.pieces, strict=False):
            key = self._hash_next(latents_BFCHW)
            if piece.key != key:
                break
            self._keys.append(key)
            self._blocks.append(latents_BFCHW)
        self._follows = False
        self.writer.rewind(len(self._blocks))
        return len(self._blocks)

    def _hash_next(self, latents_BFCHW: Tensor) -> str:
        return hash_facts([self._keys[-1], hash_tensors({"": latents_BFCHW})])

    def _decode(self, latents_BFCHW: Tensor) -> Tensor:
        if not self._follows:
            self.decoder.catch_up(self._blocks)
        self._follows = False  # unless the decoding ends well
        pixels_BFCHW = self.decoder.push(latents_BFCHW)
        self._follows = True
        self.num_decoded += 1
        return enlarge(pixels_BFCHW, self.enlarged)

    def _encode(self, pixels_BFCHW: Tensor) -> Fragment:
        if not pixels_BFCHW.numel():
            return Fragment(b"", b"", 0)
        frames_FHWC = to_bytes(pixels_BFCHW)
        self._take_last(frames_FHWC)
        return self.writer.encoding.encode(frames_FHWC, self.writer.num_frames)

    def _take_last(self, frames_FHWC: Tensor) -> None:
        if len(frames_FHWC):
            self._last_FHWC = frames_FHWC[-1:].cpu()

    def _append_end(self, fragment: Fragment, key: str) -> None:
        if fragment.num_frames:
            self.writer.append(fragment, key)

    def _store(self, key: str, entry: Entry) -> None:
        if self.store and self.decoder.identity == self._identity:  # it changes when memory runs out
            self.store.write(key, entry)


def render_video(blocks: Iterable[Tensor], renderer: VideoRenderer) -> Tensor | None:
    """Render all blocks of a video and finish it; return the last pixel frame [1, H, W, 3] as bytes."""
    for latents_BFCHW in blocks:
        renderer.render_block(latents_BFCHW)
    return renderer.finish()


def as_entry(fragment: Fragment) -> Entry:
    header, media = (
        torch.frombuffer(bytearray(part), dtype=torch.uint8) if part else torch.empty(0, dtype=torch.uint8)
        for part in (fragment.header, fragment.media)
    )
    return {"header": header, "media": media, "num_frames": torch.tensor([fragment.num_frames])}


def as_fragment(entry: Entry) -> Fragment:
    header, media = (entry[name].numpy().tobytes() for name in ("header", "media"))
    return Fragment(header, media, int(entry["num_frames"]))
