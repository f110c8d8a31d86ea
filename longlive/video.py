"""A video file, encoded block by block as the pixels come (H.264 in MP4, through PyAV).

Knows pixels and a path. Nothing piles up: the memory it takes does not depend on the length of the video.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path

import av
import torch
from av.container import OutputContainer
from av.video.stream import VideoStream
from torch import Tensor

from .config import FPS
from .errors import VideoError
from .model.vae import VideoDecoder

CRF = 18  # H.264's constant quality, 0 (lossless) to 51; at 18 the eye finds no loss

# Code points of ITU-T H.273. The matrix is the one every player assumes where it ignores the tags.
MATRIX_BT601, SRGB_PRIMARIES, BT709_TRANSFER, LIMITED_RANGE = 6, 1, 1, 1


class VideoWriter:
    """Writes pixels into an MP4 as they come.

    The file grows under a temporary name beside `path` and takes its place on `close`. `with` closes it, also on
    Ctrl-C: such a video plays up to its last frame. After any other error, or without a frame, there is no file.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        fps: int | Fraction = FPS,
        crf: float = CRF,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self.path, self.fps, self.crf, self.metadata = Path(path), Fraction(fps), crf, dict(metadata or {})
        self.num_frames = 0
        self._size: tuple[int, int] | None = None  # rows, columns
        self._container: OutputContainer | None = None
        self._stream: VideoStream | None = None
        if not self.path.parent.is_dir():
            raise VideoError(f"there is no folder {self.path.parent} for {self.path.name}; make it or choose another")

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or issubclass(kind, KeyboardInterrupt):
            self.close()
        else:
            self._discard()

    @property
    def _part(self) -> Path:
        return self.path.with_name(f"{self.path.name}.part")

    def write(self, pixels: Tensor) -> None:
        """Append pixel frames [F 3 H W] or [1 F 3 H W], -1..1, from any device; none is fine."""
        if not pixels.numel():
            return
        frames_FHWC = to_bytes(pixels).cpu().numpy()
        rows, columns = frames_FHWC.shape[1:3]
        if self._size not in (None, (rows, columns)):
            raise VideoError(f"frames (rows, columns) of {(rows, columns)} cannot follow those of {self._size}")
        with self._disk_errors():
            if self._container is None:
                self._open(rows, columns)
            for frame_HWC in frames_FHWC:
                frame = av.VideoFrame.from_ndarray(frame_HWC, format="rgb24")
                frame = frame.reformat(format="yuv420p", dst_colorspace="ITU601")
                frame.pts, frame.time_base = self.num_frames, 1 / self.fps
                self._encode(frame)
                self.num_frames += 1

    def close(self) -> None:
        """Finish the file and give it its name; a second call does nothing."""
        if self._container is None:
            return
        with self._disk_errors():
            self._encode(None)
            self._container.close()
            self._container = None
            self._part.replace(self.path)

    def _open(self, rows: int, columns: int) -> None:
        if rows % 2 or columns % 2:
            raise VideoError(f"frames are {columns} x {rows}; H.264 in yuv420p needs even sizes, so crop or pad by one")
        self._part.touch()  # PyAV opens the file only when the first packet is due, far too late for a read-only disk
        keep_metadata = {"movflags": "use_metadata_tags"}  # MP4 drops names it does not know otherwise
        self._container, self._size = av.open(self._part, "w", format="mp4", options=keep_metadata), (rows, columns)
        self._container.metadata.update(self.metadata)
        stream = self._stream = self._container.add_stream("h264", rate=self.fps, options={"crf": str(self.crf)})
        stream.width, stream.height, stream.pix_fmt = columns, rows, "yuv420p"
        stream.time_base = 1 / self.fps
        context = stream.codec_context
        context.colorspace, context.color_range = MATRIX_BT601, LIMITED_RANGE
        context.color_primaries, context.color_trc = SRGB_PRIMARIES, BT709_TRANSFER

    def _encode(self, frame: av.VideoFrame | None) -> None:
        assert self._container is not None
        assert self._stream is not None
        self._container.mux(self._stream.encode(frame))

    def _discard(self) -> None:
        """Leave nothing behind."""
        container, self._container = self._container, None
        with suppress(OSError):
            if container is not None:
                container.close()
        with suppress(OSError):
            self._part.unlink(missing_ok=True)

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        """Turn what the disk says into a VideoError, and leave no broken file behind."""
        try:
            yield
        except OSError as error:
            self._discard()
            raise VideoError(
                f"{self.path} cannot be written after {self.num_frames} frames: {error.strerror}; "
                f"free some space or choose a folder you may write to"
            ) from error


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


def render(blocks: Iterable[Tensor], decoder: VideoDecoder, writer: VideoWriter) -> Tensor | None:
    """Decode blocks of latents as they come and write their pixels; the last pixel frame [1 3 H W], if there is one."""
    last = None
    for latents_BFCHW in blocks:
        last = _written(decoder.push(latents_BFCHW), writer, last)
    return _written(decoder.flush(), writer, last)


def _written(pixels_BFCHW: Tensor, writer: VideoWriter, last: Tensor | None) -> Tensor | None:
    writer.write(pixels_BFCHW)
    return pixels_BFCHW[:, -1].cpu() if pixels_BFCHW.shape[1] else last
