"""A video file, made of fragments that are encoded one by one as the pixels come (H.264 in MP4, through PyAV).

Knows pixels and a path. Each fragment has an encoder and a container of its own, so it never changes once it is made,
and a file that ends behind any of them plays. Memory does not depend on the length of the video.
"""

import glob
import io
import os
import uuid
import weakref
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import zip_longest
from pathlib import Path

import av
import torch
from av.container import InputContainer
from av.video.stream import VideoStream
from torch import Tensor

from .config import FPS
from .errors import VideoError
from .files import atomic_write, claim, is_claimed

CRF = 18  # H.264's constant quality, 0 (lossless) to 51; at 18 the eye finds no loss
THREADS = 4  # of the encoder: another number gives other bytes, so it must not follow the machine

# Code points of ITU-T H.273. The matrix is the one every player assumes where it ignores the tags.
MATRIX_BT601, SRGB_PRIMARIES, BT709_TRANSFER, LIMITED_RANGE = 6, 1, 1, 1

# B-frames would begin a fragment before its first frame. x264's macroblock tree reads memory it never wrote, so the
# same frames would give other bytes each time.
ENCODER = {"bf": "0", "x264-params": "mbtree=0"}
# A fragment says itself when it begins. Without the last option they all begin at 0.
FRAGMENT = {
    "movflags": "frag_keyframe+empty_moov+default_base_moof+frag_discont",
    "use_editlist": "0",
    "avoid_negative_ts": "disabled",
}
# MP4 drops names of metadata that it does not know otherwise; its index comes first, so that a page plays at once.
FILE = {"movflags": "use_metadata_tags+faststart"}
GROWING = ".part.mp4"  # a file that is not finished, but plays
CELL_PIXELS = 4  # of a picture of latents, where a cell of true pixels has 8
HEADER_BYTES = 8  # of a box of MP4: its length and its name


@dataclass(frozen=True, slots=True)
class Fragment:
    """Some pixel frames of a video. `header` and the `media` of all fragments in order are a file that plays."""

    header: bytes  # the same in all fragments of a video
    media: bytes
    num_frames: int


@dataclass(frozen=True, slots=True)
class Encoding:
    """How pixels become fragments."""

    fps: Fraction = Fraction(FPS)
    crf: float = CRF

    @property
    def identity(self) -> str:
        """What else the bytes of a fragment depend on, beside its pixels and the number of its first frame."""
        library = ".".join(map(str, av.library_versions["libavcodec"]))
        return f"h264 {self.fps} {self.crf} {ENCODER} {FRAGMENT} {THREADS} threads, libavcodec {library}"

    def fragment(self, frames_FHWC: Tensor, first_frame: int) -> Fragment:
        """Encode frames of bytes, the first of which is number `first_frame` of its video."""
        rows, columns = frames_FHWC.shape[1:3]
        if rows % 2 or columns % 2:
            raise VideoError(f"frames are {columns} x {rows}; H.264 in yuv420p needs even sizes, so crop or pad by one")
        sink = io.BytesIO()
        with av.open(sink, "w", format="mp4", options=FRAGMENT) as container:
            stream = container.add_stream("h264", rate=self.fps, options={**ENCODER, "crf": str(self.crf)})
            describe(stream, rows, columns)
            for number, frame_HWC in enumerate(frames_FHWC.cpu().numpy(), first_frame):
                frame = av.VideoFrame.from_ndarray(frame_HWC, format="rgb24")
                frame = frame.reformat(format="yuv420p", dst_colorspace="ITU601")
                frame.pts, frame.time_base = number, 1 / self.fps
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        header, media = divide(sink.getvalue())
        return Fragment(header, media, len(frames_FHWC))


def describe(stream: VideoStream, rows: int, columns: int) -> None:
    stream.width, stream.height, stream.pix_fmt = columns, rows, "yuv420p"
    context = stream.codec_context
    context.thread_count = THREADS
    context.colorspace, context.color_range = MATRIX_BT601, LIMITED_RANGE
    context.color_primaries, context.color_trc = SRGB_PRIMARIES, BT709_TRANSFER


def divide(file: bytes) -> tuple[bytes, bytes]:
    """The boxes of an MP4 that describe the video, and those that hold its frames, in their order.

    There are several of the latter where the encoder began again with a key frame, as it does at a hard cut.
    """
    header, media = [], []
    start = 0
    while start < len(file):
        length = int.from_bytes(file[start : start + 4], "big")
        assert length >= HEADER_BYTES, length
        box, name = file[start : start + length], file[start + 4 : start + HEADER_BYTES]
        if name in (b"ftyp", b"moov"):
            header.append(box)
        elif name in (b"moof", b"mdat"):
            media.append(box)
        start += length
    return b"".join(header), b"".join(media)


class VideoWriter:
    """Writes pixels into an MP4 as they come.

    Until `close` the video grows in a file of its own beside `path`, or in the folder `growing`, which plays up to its
    last fragment even after the process was killed. `with` closes the video, also on Ctrl-C: `path` then plays up to
    the last frame, unless a longer video that begins alike is there already. After any other error, or without a
    frame, `path` is as it was.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        fps: int | Fraction = FPS,
        crf: float = CRF,
        metadata: Mapping[str, str] | None = None,
        growing: Path | None = None,
    ) -> None:
        self.path, self.encoding, self.metadata = Path(path), Encoding(Fraction(fps), crf), dict(metadata or {})
        self.num_frames = 0
        self._size: tuple[int, int] | None = None  # rows, columns
        check_output(self.path)
        self._growing = GrowingFile((growing or self.path.parent) / self.path.name)

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.close()
            elif issubclass(kind, KeyboardInterrupt):
                self._close_interrupted()
        finally:
            self._growing.remove()

    def write(self, pixels: Tensor) -> Fragment | None:
        """Append pixel frames [F 3 H W] or [1 F 3 H W], -1..1, from any device, as a fragment; none is fine."""
        if not pixels.numel():
            return None
        frames_FHWC = to_bytes(pixels)
        rows, columns = frames_FHWC.shape[1:3]
        if self._size not in (None, (rows, columns)):
            raise VideoError(f"frames (rows, columns) of {(rows, columns)} cannot follow those of {self._size}")
        fragment = self.encoding.fragment(frames_FHWC, self.num_frames)
        self._size = rows, columns
        self.append(fragment)
        return fragment

    def append(self, fragment: Fragment) -> None:
        """Append a fragment whose first frame is the next one."""
        with self._disk_errors():
            self._growing.append(fragment)
        self.num_frames += fragment.num_frames

    def save(self, path: Path) -> None:
        """Write what there is so far into an ordinary file; more may follow."""
        with self._disk_errors(), atomic_write(path) as part:
            remux(self._growing.path, part, self.metadata)

    def close(self) -> None:
        """Finish the file and give it its name; a second call does nothing."""
        if not self._growing.is_open:
            return
        try:
            self.save(self.path)
        finally:
            self._growing.remove()

    def discard(self) -> None:
        """Leave `path` as it was."""
        self._growing.remove()

    def _close_interrupted(self) -> None:
        if self._growing.is_open and self.num_frames:
            self._growing.trim()
            if not begins_alike(self.path, self._growing.path):
                self.close()

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        """Turn what the disk says into a VideoError, and leave no broken file behind."""
        try:
            yield
        except OSError as error:
            self._growing.remove()
            raise unwritable(self.path, error, self.num_frames) from error


class GrowingFile:
    """The fragments of a video that is to become `path`, in a file beside it that no other writer has.

    It is gone when it is removed, when nobody holds it, and at the end of the process, unless that is killed.
    """

    def __init__(self, path: Path) -> None:
        self.final = path
        self.path = path.with_name(f"{path.stem}.{uuid.uuid4().hex[:8]}{GROWING}")
        self.is_open = False
        self._length = 0  # bytes of the whole fragments
        self._held = ExitStack()
        self._end = weakref.finalize(self, discard, self._held, self.path)

    def append(self, fragment: Fragment) -> None:
        """Raises OSError where the disk refuses."""
        if not fragment.num_frames:
            return
        if not self.is_open:
            self._open(fragment.header)
        self._file.write(fragment.media)
        self._file.flush()
        self._length = self._file.tell()

    def trim(self) -> None:
        """Drop what an interrupt left of a fragment."""
        self._file.seek(self._length)
        self._file.truncate()

    def remove(self) -> None:
        self.is_open = False
        self._end()

    def _open(self, header: bytes) -> None:
        remove_abandoned(self.final)
        hidden = self.path.with_name(f".{self.path.name}")  # until it is claimed
        self._held.callback(discard, ExitStack(), hidden)
        hidden.touch()
        self._held.enter_context(claim(hidden))
        os.replace(hidden, self.path)
        self._file = self._held.enter_context(self.path.open("wb"))
        self._file.write(header)
        self.is_open = True


def discard(held: ExitStack, path: Path) -> None:
    with suppress(OSError):
        held.close()
    with suppress(OSError):
        path.unlink(missing_ok=True)


def remove_abandoned(path: Path) -> None:
    """Remove the growing files of killed processes that were to become `path`."""
    for other in path.parent.glob(f"{glob.escape(path.stem)}.????????{GROWING}"):
        with suppress(OSError):
            if not is_claimed(other):
                other.unlink()


def remux(fragments: Path, path: Path, metadata: Mapping[str, str]) -> None:
    """Copy the packets of a fragmented file into an ordinary one, without decoding. Raises OSError."""
    with av.open(fragments) as source, av.open(path, "w", format="mp4", options=FILE) as container:
        container.metadata.update(metadata)
        incoming = source.streams.video[0]
        outgoing = container.add_stream_from_template(incoming)
        for packet in source.demux(incoming):
            if packet.dts is not None:
                packet.stream = outgoing
                container.mux(packet)


def begins_alike(path: Path, fragments: Path) -> bool:
    """Whether the video at `path` has all packets of another one as its first."""
    if not path.is_file():
        return False
    try:
        with av.open(path) as longer, av.open(fragments) as shorter:
            pairs = zip_longest(packets(longer), packets(shorter))
            return all(ours is None or ours == theirs for theirs, ours in pairs)
    except (OSError, IndexError):  # a file that is no video
        return False


def packets(container: InputContainer) -> Iterator[bytes]:
    return (bytes(packet) for packet in container.demux(container.streams.video[0]) if packet.dts is not None)


def check_output(path: Path) -> None:
    """Refuse a path that no video can be written to. Raises VideoError."""
    if path.is_dir():
        raise VideoError(f"{path} is a folder; give the name of a file, such as {path / 'video.mp4'}")
    if not path.parent.is_dir():
        raise VideoError(f"there is no folder {path.parent} for {path.name}; make it or choose another")
    probe = path.with_name(f".{uuid.uuid4().hex}{GROWING}")
    try:
        probe.touch()
    except OSError as error:
        raise unwritable(path, error, 0) from error
    finally:
        discard(ExitStack(), probe)


def unwritable(path: Path, error: OSError, num_frames: int) -> VideoError:
    return VideoError(
        f"{path} cannot be written after {num_frames} frames: {error.strerror}; "
        f"free some space or choose a folder you may write to"
    )


def to_bytes(pixels: Tensor) -> Tensor:
    """Turn pixels [F 3 H W] or [1 F 3 H W], -1..1, into bytes [F H W 3] where they are, before they travel.

    Rounds to the nearest of 0..255; the reference cuts the fraction off, which darkens by half a step on average.
    """
    if pixels.ndim == 5:
        if pixels.shape[0] != 1:
            raise ValueError(f"a file holds one video, but the batch holds {pixels.shape[0]}")
        pixels = pixels[0]
    scaled_FCHW = pixels.float().mul(127.5).add_(127.5).round_().clamp_(0, 255)
    return scaled_FCHW.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def latent_colours(latents_BFCHW: Tensor, factors: list[list[float]], bias: list[float] | None) -> Tensor:
    """A picture [1 F 3 H W], -1..1, of each latent: every channel has a colour, every cell a square of pixels."""
    colours_CR = torch.tensor(factors)
    pixels_BFRHW = torch.einsum("bfchw,cr->bfrhw", latents_BFCHW.float(), colours_CR)
    pixels_BFRHW += torch.tensor(bias or [0.0] * 3).view(-1, 1, 1)
    return pixels_BFRHW.repeat_interleave(CELL_PIXELS, -1).repeat_interleave(CELL_PIXELS, -2)
