"""Renders blocks of latents into a video file; only new blocks are decoded and encoded.

Every block becomes a fragment of the file (`fragments.py`). It is stored under a hash of all that determines it: the
latents so far, the decoder and the encoder. Before the first block that is not in the store, the decoder catches up on
the latents so far (`catch_up`). So a video is the same to the byte however much of it the store has.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
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
    With `beside`, a thread encodes a block while the caller goes on, and its error is raised by the next call.
    """

    def __init__(
        self,
        decoder: ResumableDecoder,
        writer: FragmentWriter,
        store: Store | None = None,
        *,
        enlarged: int = 1,
        beside: bool = False,
    ) -> None:
        self.decoder, self.writer, self.store, self.enlarged = decoder, writer, store, enlarged
        self.num_decoded = 0  # blocks that were not found
        self._thread = ThreadPoolExecutor(max_workers=1) if beside else None
        self._encoding: Future[Fragment] | None = None  # of the last block
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
        """Append the next block of latents [1, F, C, h, w]. After an error it may come again."""
        self.wait()
        key = hash_next(self._keys[-1], latents_BFCHW)
        entry = self.store.read(key, FRAGMENT_ENTRY) if self.store else None
        frames_FHWC = None if entry else self._decode(latents_BFCHW)
        self._keys.append(key)
        self._blocks.append(latents_BFCHW)
        with self._discard_block_on_error():
            if entry:
                self._follows = False
                self.writer.append(as_fragment(entry), key)
            elif frames_FHWC is not None and self._thread:
                self._encoding = self._thread.submit(self._encode, frames_FHWC, key, self._can_store())
            elif frames_FHWC is not None:
                self._encode(frames_FHWC, key, self._can_store())

    def finish(self) -> Tensor | None:
        """Append what the decoder still holds; return the last pixel frame [1, H, W, 3] as bytes, if there is one."""
        self.wait()
        key = hash_facts([self._keys[-1], "end"])
        entry = self.store.read(key, END_ENTRY) if self.store else None
        if entry:
            fragment = as_fragment(entry)
            self._last_FHWC = entry["last"].view(1, *entry["size"].tolist(), 3)
            self.decoder.catch_up([])
        else:
            if not self._follows and self._blocks:
                last_BFCHW = self._blocks.pop()
                self._decode(last_BFCHW)
                self._blocks.append(last_BFCHW)
            fragment = self._encode_frames(self._take_frames(self.decoder.flush()))
            if self._last_FHWC is not None:
                rows, columns = self._last_FHWC.shape[1:3]
                end = {"last": self._last_FHWC.flatten(), "size": torch.tensor([rows, columns])}
                self._store(key, as_entry(fragment) | end, self._can_store())
        self._follows = False
        if fragment.num_frames:
            self.writer.append(fragment, key)
        return self._last_FHWC

    def rewind(self, num_blocks: int) -> None:
        """Drop all blocks of a film but the first ones, also after `finish`; the next block follows them.

        Raises VideoError if the disk refuses.
        """
        assert isinstance(self.writer, Film), self.writer
        assert 0 <= num_blocks <= len(self._blocks), num_blocks
        self.wait()
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
        keys = self._keys[:]
        for latents_BFCHW, piece in zip(blocks, self.writer.pieces, strict=False):
            key = hash_next(keys[-1], latents_BFCHW)
            if piece.key != key:
                break
            keys.append(key)
        found = len(keys) - 1
        self.writer.rewind(found)
        self._keys, self._blocks, self._follows = keys, [*blocks[:found]], False
        return found

    def _decode(self, latents_BFCHW: Tensor) -> Tensor:
        """Decode the next block into frames of bytes [F, H, W, 3] on the CPU."""
        if not self._follows:
            self.decoder.catch_up(self._blocks)
        self._follows = False  # unless the decoding ends well
        frames_FHWC = self._take_frames(self.decoder.push(latents_BFCHW))
        self._follows = True
        self.num_decoded += 1
        return frames_FHWC

    def _take_frames(self, pixels_BFCHW: Tensor) -> Tensor:
        frames_FHWC = to_bytes(enlarge(pixels_BFCHW, self.enlarged)).cpu()
        if len(frames_FHWC):
            self._last_FHWC = frames_FHWC[-1:].clone()  # a view would keep all of them
        return frames_FHWC

    def _encode(self, frames_FHWC: Tensor, key: str, can_store: bool) -> Fragment:
        """Encode frames as the next fragment; store it, then append it."""
        fragment = self._encode_frames(frames_FHWC)
        self._store(key, as_entry(fragment), can_store)
        self.writer.append(fragment, key)
        return fragment

    def _encode_frames(self, frames_FHWC: Tensor) -> Fragment:
        if not len(frames_FHWC):
            return Fragment(b"", b"", 0)
        return self.writer.encoding.encode(frames_FHWC, self.writer.num_frames)

    def wait(self) -> None:
        """Wait until the last block is in the video. Raises what prevents that; the block may come again then."""
        encoding, self._encoding = self._encoding, None
        if encoding:
            with self._discard_block_on_error():
                encoding.result()

    @contextmanager
    def _discard_block_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._keys.pop()
            self._blocks.pop()
            self._follows = False
            raise

    def _can_store(self) -> bool:
        return self.decoder.identity == self._identity  # it changes when memory runs out

    def _store(self, key: str, entry: Entry, can_store: bool) -> None:
        if self.store and can_store:
            self.store.write(key, entry)


def render_video(blocks: Iterable[Tensor], renderer: VideoRenderer) -> Tensor | None:
    """Render all blocks of a video and finish it; return the last pixel frame [1, H, W, 3] as bytes."""
    for latents_BFCHW in blocks:
        renderer.render_block(latents_BFCHW)
    return renderer.finish()


def hash_next(key: str, latents_BFCHW: Tensor) -> str:
    """Hash all that the next fragment depends on, which begins with the `key` of the one before it."""
    return hash_facts([key, hash_tensors({"": latents_BFCHW})])


def as_entry(fragment: Fragment) -> Entry:
    header, media = (
        torch.frombuffer(bytearray(part), dtype=torch.uint8) if part else torch.empty(0, dtype=torch.uint8)
        for part in (fragment.header, fragment.media)
    )
    return {"header": header, "media": media, "num_frames": torch.tensor([fragment.num_frames])}


def as_fragment(entry: Entry) -> Fragment:
    header, media = (entry[name].numpy().tobytes() for name in ("header", "media"))
    return Fragment(header, media, int(entry["num_frames"]))
