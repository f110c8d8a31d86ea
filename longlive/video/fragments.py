"""Fragments of a video file: some pixel frames each, encoded separately (H.264 in MP4, through PyAV).

Every fragment has its own encoder and container, so it never changes once it is made, and a file of the first few
fragments plays.
"""

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import zip_longest
from pathlib import Path

import av
import numpy as np
import torch
from av.container import InputContainer
from av.error import FFmpegError
from av.video.stream import VideoStream
from torch import Tensor

from ..errors import VideoError
from ..units import FPS

CRF = 18  # H.264's constant quality, 0 (lossless) to 51; at 18 the eye finds no loss
THREADS = 4  # of the encoder: another number gives other bytes, so it must not follow the machine

# Code points of ITU-T H.273. Players that ignore them assume this matrix.
MATRIX_BT601, SRGB_PRIMARIES, BT709_TRANSFER, LIMITED_RANGE = 6, 1, 1, 1

# With B-frames, a fragment's time stamps would begin before its first frame. x264's macroblock tree reads memory it
# never wrote, so the same frames would give other bytes each time.
ENCODER_OPTIONS = {"bf": "0", "x264-params": "mbtree=0"}
# A fragment states when it begins. Without `frag_discont` and `avoid_negative_ts` that would always be 0.
FRAGMENT_OPTIONS = {
    "movflags": "frag_keyframe+empty_moov+default_base_moof+frag_discont",
    "use_editlist": "0",
    "avoid_negative_ts": "disabled",
}
# Keep metadata names that MP4 does not know; put the index first, so that a page plays the file at once.
FILE_OPTIONS = {"movflags": "use_metadata_tags+faststart"}
# A playlist could name any file of this machine, so only formats that hold their pictures themselves are read.
INPUT_OPTIONS = {
    "format_whitelist": "mov,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg,mxf,gif",
    "protocol_whitelist": "file",
}
HEADER_BYTES = 8  # of a box of MP4: its length and its name
HEADER_BOXES, MEDIA_BOXES = (b"ftyp", b"moov"), (b"moof", b"mdat")  # describe the video; hold its frames


@dataclass(frozen=True, slots=True)
class Fragment:
    """Some pixel frames of a video. `header`, then the `media` of all fragments in order, is a file that plays."""

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
        """All that the bytes of a fragment depend on, except its pixels and the number of its first frame."""
        library = ".".join(map(str, av.library_versions["libavcodec"]))
        return (
            f"h264 {self.fps} {self.crf} {ENCODER_OPTIONS} {FRAGMENT_OPTIONS} {THREADS} threads, libavcodec {library}"
        )

    def encode(self, frames_FHWC: Tensor, first_frame: int) -> Fragment:
        """Encode frames of bytes [F, H, W, 3]; the first is number `first_frame` of its video.

        Raises VideoError for an odd height or width.
        """
        rows, columns = frames_FHWC.shape[1:3]
        if rows % 2 or columns % 2:
            raise VideoError(f"frames are {columns} x {rows}; H.264 in yuv420p needs even sizes, so crop or pad by one")
        sink = io.BytesIO()
        with av.open(sink, "w", format="mp4", options=FRAGMENT_OPTIONS) as container:
            stream = container.add_stream("h264", rate=self.fps, options={**ENCODER_OPTIONS, "crf": str(self.crf)})
            set_up_stream(stream, rows, columns)
            for number, frame_HWC in enumerate(frames_FHWC.cpu().numpy(), first_frame):
                frame = av.VideoFrame.from_ndarray(frame_HWC, format="rgb24")
                frame = frame.reformat(format="yuv420p", dst_colorspace="ITU601")
                frame.pts, frame.time_base = number, 1 / self.fps
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        header, media = split_boxes(sink.getvalue())
        return Fragment(header, media, len(frames_FHWC))


def decode_fragment(fragment: Fragment) -> Tensor:
    """Decode the pixel frames of a fragment, as bytes [F, H, W, 3] on the CPU."""
    if not fragment.num_frames:
        return torch.empty(0, 0, 0, 3, dtype=torch.uint8)
    with av.open(io.BytesIO(fragment.header + fragment.media), "r", format="mp4") as container:
        return torch.from_numpy(np.stack([draw_frame(frame) for frame in container.decode(video=0)]))


def draw_frame(frame: av.VideoFrame) -> np.ndarray:
    """Convert a decoded frame to bytes [H, W, 3]."""
    return frame.to_ndarray(format="rgb24")


def set_up_stream(stream: VideoStream, rows: int, columns: int) -> None:
    stream.width, stream.height, stream.pix_fmt = columns, rows, "yuv420p"
    context = stream.codec_context
    context.thread_count = THREADS
    context.colorspace, context.color_range = MATRIX_BT601, LIMITED_RANGE
    context.color_primaries, context.color_trc = SRGB_PRIMARIES, BT709_TRANSFER


def split_boxes(file: bytes) -> tuple[bytes, bytes]:
    """Split an MP4 into the boxes that describe the video and those that hold its frames, in order.

    The frames are in several boxes if the encoder inserted a key frame, as it does at a hard cut.
    """
    header, media = [], []
    start = 0
    while start < len(file):
        length = int.from_bytes(file[start : start + 4], "big")
        assert length >= HEADER_BYTES, length
        box, name = file[start : start + length], file[start + 4 : start + HEADER_BYTES]
        if name in HEADER_BOXES:
            header.append(box)
        elif name in MEDIA_BOXES:
            media.append(box)
        start += length
    return b"".join(header), b"".join(media)


def remux(fragments: Path, path: Path, metadata: Mapping[str, str]) -> None:
    """Copy the packets of a fragmented file into an ordinary one, without decoding. Raises OSError."""
    with (
        open_container(fragments) as source,
        av.open(path.absolute(), "w", format="mp4", options=FILE_OPTIONS) as container,
    ):
        container.metadata.update(metadata)
        incoming = source.streams.video[0]
        outgoing = container.add_stream_from_template(incoming)
        for packet in source.demux(incoming):
            if packet.dts is not None:
                packet.stream = outgoing
                container.mux(packet)


def has_beginning(path: Path, fragments: Path) -> bool:
    """Return whether the video at `path` begins with all packets of the one at `fragments`."""
    if not path.is_file():
        return False
    try:
        with open_container(path) as longer, open_container(fragments) as shorter:
            pairs = zip_longest(read_packets(longer), read_packets(shorter))
            return all(ours is None or ours == theirs for theirs, ours in pairs)
    except (OSError, FFmpegError, IndexError):  # not a video
        return False


def open_container(path: Path) -> InputContainer:
    """Open a video file to read. Raises OSError or FFmpegError for anything else, such as a list of other files.

    The path is made absolute, because FFmpeg takes a relative name with a colon for an address.
    """
    return av.open(path.absolute(), options=INPUT_OPTIONS)


def read_packets(container: InputContainer) -> Iterator[bytes]:
    return (bytes(packet) for packet in container.demux(container.streams.video[0]) if packet.dts is not None)
