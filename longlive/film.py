"""A film: blocks of latents decoded into a video file, where only what is new is decoded and encoded.

Every block gives a fragment of the file (`video.py`). It is kept in a store under a hash of all that determines it:
the latents so far, the decoder and the encoder. The decoder's memory is rebuilt from the latents before (`catch_up`),
so that a film is the same to the byte however much of it was found.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from .digest import digest_of_tensors
from .model.vae import ResumableDecoder
from .store import Entry, Store
from .video import Fragment, VideoWriter, to_bytes

log = logging.getLogger(__name__)

FILM_VERSION = 2  # raised whenever the same latents would give other fragments
FRAGMENT = dict.fromkeys(("header", "media"), (None, torch.uint8)) | {"num_frames": ((1,), torch.int64)}
END = FRAGMENT | {"last": (None, torch.uint8), "size": ((2,), torch.int64)}  # rows, columns


class Film:
    """Appends blocks of latents to a video file; fragments that `store` has are neither decoded nor encoded again."""

    def __init__(
        self, decoder: ResumableDecoder, writer: VideoWriter, store: Store | None = None, *, enlarged: int = 1
    ) -> None:
        self.decoder, self.writer, self.store, self.enlarged = decoder, writer, store, enlarged
        self.num_decoded = 0  # blocks that were not found
        self._blocks: list[Tensor] = []
        self._follows = True  # whether the decoder has seen the last block
        self._last_FHWC: Tensor | None = None  # the newest pixel frame, where it was decoded
        self._identity = decoder.identity
        self._key = key_of([FILM_VERSION, self._identity, writer.encoding.identity, enlarged])

    def push(self, latents_BFCHW: Tensor) -> None:
        """Append the next block."""
        self._key = key_of([self._key, digest_of_tensors({"": latents_BFCHW})])
        entry = self.store.read(self._key, FRAGMENT) if self.store else None
        if entry:
            self.writer.append(as_fragment(entry))
            self._follows = False
        else:
            self._keep(self._key, self._encode(self._decode(latents_BFCHW)))
        self._blocks.append(latents_BFCHW)

    def finish(self) -> Tensor | None:
        """Append what the decoder still owes; the last pixel frame [1 H W 3] as bytes, if there is one."""
        key = key_of([self._key, "end"])
        entry = self.store.read(key, END) if self.store else None
        if entry:
            self.writer.append(as_fragment(entry))
            self.decoder.catch_up([])
            return entry["last"].view(1, *entry["size"].tolist(), 3)
        if not self._follows:
            self._last_FHWC = self._as_last(self._decode(self._blocks.pop()))
        tail = self._encode(self.decoder.flush())
        if self._last_FHWC is not None:
            rows, columns = self._last_FHWC.shape[1:3]
            self._keep(key, tail | {"last": self._last_FHWC.flatten(), "size": torch.tensor([rows, columns])})
        return self._last_FHWC

    def _decode(self, latents_BFCHW: Tensor) -> Tensor:
        if not self._follows:
            self.decoder.catch_up(self._blocks)
            self._follows = True
        self.num_decoded += 1
        return enlarge(self.decoder.push(latents_BFCHW), self.enlarged)

    def _encode(self, pixels_BFCHW: Tensor) -> Entry:
        self._last_FHWC = self._as_last(pixels_BFCHW)
        return as_entry(self.writer.write(pixels_BFCHW))

    def _as_last(self, pixels_BFCHW: Tensor) -> Tensor | None:
        return to_bytes(pixels_BFCHW[:, -1:]).cpu() if pixels_BFCHW.shape[1] else self._last_FHWC

    def _keep(self, key: str, entry: Entry) -> None:
        if self.store and self.decoder.identity == self._identity:  # a decoder short of memory may have changed its way
            self.store.write(key, entry)


def render(blocks: Iterable[Tensor], film: Film) -> Tensor | None:
    """Append all blocks of a film and finish it; its last pixel frame [1 H W 3] as bytes."""
    for latents_BFCHW in blocks:
        film.push(latents_BFCHW)
    return film.finish()


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


def enlarge(pixels_BFCHW: Tensor, times: int) -> Tensor:
    """Pixels for looking at, smooth between the true ones."""
    if times == 1 or not pixels_BFCHW.shape[1]:
        return pixels_BFCHW
    frames = interpolate(pixels_BFCHW.flatten(0, 1), scale_factor=times, mode="bicubic").clamp(-1, 1)
    return frames.unflatten(0, pixels_BFCHW.shape[:2])


def key_of(facts: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
