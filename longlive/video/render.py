"""Renders blocks of latents into a video file; only new blocks are decoded and encoded.

Every block becomes a fragment of the file (`fragments.py`). It is stored under a hash of all that determines it: the
latents so far, the decoder and the encoder. Before the first block that is not in the store, the decoder catches up on
the latents so far (`catch_up`). So a video is the same to the byte however much of it the store has.
"""

import logging
from collections.abc import Iterable

import torch
from torch import Tensor

from ..digest import hash_facts, hash_tensors
from ..model.vae_streams import ResumableDecoder
from ..session.block_store import Entry, Store
from .fragments import Fragment
from .pixels import enlarge, to_bytes
from .writer import VideoWriter

log = logging.getLogger(__name__)

FRAGMENT_VERSION = 2  # raised whenever the same latents would give other fragments, but for rounding
FRAGMENT_ENTRY = dict.fromkeys(("header", "media"), (None, torch.uint8)) | {"num_frames": ((1,), torch.int64)}
END_ENTRY = FRAGMENT_ENTRY | {"last": (None, torch.uint8), "size": ((2,), torch.int64)}  # rows, columns


class VideoRenderer:
    """Appends blocks of latents to a video file; fragments found in `store` are neither decoded nor encoded again."""

    def __init__(
        self, decoder: ResumableDecoder, writer: VideoWriter, store: Store | None = None, *, enlarged: int = 1
    ) -> None:
        self.decoder, self.writer, self.store, self.enlarged = decoder, writer, store, enlarged
        self.num_decoded = 0  # blocks that were not found
        self._blocks: list[Tensor] = []
        self._follows = True  # whether the decoder has decoded the last block, or caught up on it
        self._last_FHWC: Tensor | None = None  # the newest pixel frame, where it was decoded
        self._identity = decoder.identity
        self._key = hash_facts([FRAGMENT_VERSION, self._identity, writer.encoding.identity, enlarged])

    def render_block(self, latents_BFCHW: Tensor) -> None:
        """Append the next block of latents [1, F, C, h, w]."""
        self._key = hash_facts([self._key, hash_tensors({"": latents_BFCHW})])
        entry = self.store.read(self._key, FRAGMENT_ENTRY) if self.store else None
        if entry:
            self.writer.append(as_fragment(entry))
            self._follows = False
        else:
            self._store(self._key, self._encode(self._decode(latents_BFCHW)))
        self._blocks.append(latents_BFCHW)

    def finish(self) -> Tensor | None:
        """Append what the decoder still holds; return the last pixel frame [1, H, W, 3] as bytes, if there is one."""
        key = hash_facts([self._key, "end"])
        entry = self.store.read(key, END_ENTRY) if self.store else None
        if entry:
            self.writer.append(as_fragment(entry))
            self.decoder.catch_up([])
            return entry["last"].view(1, *entry["size"].tolist(), 3)
        if not self._follows:
            self._last_FHWC = self._take_last(self._decode(self._blocks.pop()))
        tail = self._encode(self.decoder.flush())
        if self._last_FHWC is not None:
            rows, columns = self._last_FHWC.shape[1:3]
            self._store(key, tail | {"last": self._last_FHWC.flatten(), "size": torch.tensor([rows, columns])})
        return self._last_FHWC

    def _decode(self, latents_BFCHW: Tensor) -> Tensor:
        if not self._follows:
            self.decoder.catch_up(self._blocks)
            self._follows = True
        self.num_decoded += 1
        return enlarge(self.decoder.push(latents_BFCHW), self.enlarged)

    def _encode(self, pixels_BFCHW: Tensor) -> Entry:
        self._last_FHWC = self._take_last(pixels_BFCHW)
        return as_entry(self.writer.write(pixels_BFCHW))

    def _take_last(self, pixels_BFCHW: Tensor) -> Tensor | None:
        return to_bytes(pixels_BFCHW[:, -1:]).cpu() if pixels_BFCHW.shape[1] else self._last_FHWC

    def _store(self, key: str, entry: Entry) -> None:
        if self.store and self.decoder.identity == self._identity:  # it changes when memory runs out
            self.store.write(key, entry)


def render_video(blocks: Iterable[Tensor], renderer: VideoRenderer) -> Tensor | None:
    """Render all blocks of a video and finish it; return the last pixel frame [1, H, W, 3] as bytes."""
    for latents_BFCHW in blocks:
        renderer.render_block(latents_BFCHW)
    return renderer.finish()


def as_entry(fragment: Fragment | None) -> Entry:
    fragment = fragment or Fragment(b"", b"", 0)
    header, media = (
        torch.frombuffer(bytearray(part), dtype=torch.uint8) if part else torch.empty(0, dtype=torch.uint8)
        for part in (fragment.header, fragment.media)
    )
    return {"header": header, "media": media, "num_frames": torch.tensor([fragment.num_frames])}


def as_fragment(entry: Entry) -> Fragment:
    header, media = (entry[name].numpy().tobytes() for name in ("header", "media"))
    return Fragment(header, media, int(entry["num_frames"]))
