"""A video file that grows fragment by fragment as the pixels come, and plays at any time.

Knows pixels and a path. Memory use does not depend on the length of the video.
"""

import glob
import os
import uuid
import weakref
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from fractions import Fraction
from pathlib import Path

from torch import Tensor

from ..errors import VideoError
from ..files import atomic_write, claim, is_claimed
from ..units import FPS
from .fragments import CRF, Encoding, Fragment, has_beginning, remux
from .pixels import to_bytes

GROWING_SUFFIX = ".part.mp4"  # a file that is not finished, but plays


class VideoWriter:
    """Writes pixels into an MP4 as they come.

    The video grows in another file, beside `path` or in the folder `growing`. That file plays up to its last fragment,
    even after the process was killed. `close`, or the end of a `with` block, puts the whole video at `path`. A Ctrl-C
    puts what was written there, unless `path` already holds a longer video with the same beginning. After any other
    error, or without a frame, `path` is unchanged.
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
        """Append pixel frames [F 3 H W] or [1 F 3 H W], -1..1, from any device, as a fragment; F may be 0.

        Raises VideoError for frames of another size or if the disk refuses.
        """
        if not pixels.numel():
            return None
        frames_FHWC = to_bytes(pixels)
        rows, columns = frames_FHWC.shape[1:3]
        if self._size not in (None, (rows, columns)):
            raise VideoError(f"frames (rows, columns) of {(rows, columns)} cannot follow those of {self._size}")
        fragment = self.encoding.encode(frames_FHWC, self.num_frames)
        self._size = rows, columns
        self.append(fragment)
        return fragment

    def append(self, fragment: Fragment, key: str = "") -> None:
        """Append a fragment whose first frame is the next one; only a film keeps its key."""
        with self._report_disk_errors():
            self._growing.append(fragment)
        self.num_frames += fragment.num_frames

    def save(self, path: Path) -> None:
        """Write the video so far into an ordinary file; more frames may follow."""
        with self._report_disk_errors(), atomic_write(path) as part:
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
        """Drop the video and leave `path` unchanged."""
        self._growing.remove()

    def _close_interrupted(self) -> None:
        if self._growing.is_open and self.num_frames:
            self._growing.trim()
            if not has_beginning(self.path, self._growing.path):
                self.close()

    @contextmanager
    def _report_disk_errors(self) -> Iterator[None]:
        """Turn an OSError into a VideoError, and remove the growing file."""
        try:
            yield
        except OSError as error:
            self._growing.remove()
            raise as_video_error(self.path, error, self.num_frames) from error


class GrowingFile:
    """The fragments of a video that will become `path`, in a file beside it whose name no other writer has.

    The file is deleted by `remove`, or with this object, or when the process ends without being killed.
    """

    def __init__(self, path: Path) -> None:
        self.final = path
        self.path = path.with_name(f"{path.stem}.{uuid.uuid4().hex[:8]}{GROWING_SUFFIX}")
        self.is_open = False
        self._length = 0  # bytes of the whole fragments
        self._held = ExitStack()
        self._end = weakref.finalize(self, close_and_delete, self._held, self.path)

    def append(self, fragment: Fragment) -> None:
        """Append a fragment. Raises OSError if the disk refuses."""
        if not fragment.num_frames:
            return
        if not self.is_open:
            self._open(fragment.header)
        self._file.write(fragment.media)
        self._file.flush()
        self._length = self._file.tell()

    def trim(self) -> None:
        """Drop the part of a fragment that an interrupt left."""
        self._file.seek(self._length)
        self._file.truncate()

    def remove(self) -> None:
        self.is_open = False
        self._end()

    def _open(self, header: bytes) -> None:
        remove_abandoned(self.final)
        hidden = self.path.with_name(f".{self.path.name}")  # from `remove_abandoned`, until it is claimed
        self._held.callback(close_and_delete, ExitStack(), hidden)
        hidden.touch()
        self._held.enter_context(claim(hidden))
        os.replace(hidden, self.path)
        self._file = self._held.enter_context(self.path.open("wb"))
        self._file.write(header)
        self.is_open = True


def close_and_delete(held: ExitStack, path: Path) -> None:
    with suppress(OSError):
        held.close()
    with suppress(OSError):
        path.unlink(missing_ok=True)


def remove_abandoned(path: Path) -> None:
    """Remove the growing files of killed processes that were to become `path`."""
    for other in path.parent.glob(f"{glob.escape(path.stem)}.????????{GROWING_SUFFIX}"):
        with suppress(OSError):
            if not is_claimed(other):
                other.unlink()


def check_output(path: Path) -> None:
    """Check that a video can be written to a path. Raises VideoError."""
    if os.path.isdir(path):  # unlike Path.is_dir, accepts names that no disk does
        raise VideoError(f"{path} is a folder; give the name of a file, such as {path / 'video.mp4'}")
    if not os.path.isdir(path.parent):
        raise VideoError(f"there is no folder {path.parent} for {path.name}; make it or choose another")
    probe = path.with_name(f".{uuid.uuid4().hex}{GROWING_SUFFIX}")
    try:
        probe.touch()
    except OSError as error:
        raise as_video_error(path, error, 0) from error
    finally:
        close_and_delete(ExitStack(), probe)


def as_video_error(path: Path, error: OSError, num_frames: int) -> VideoError:
    return VideoError(
        f"{path} cannot be written after {num_frames} frames: {error.strerror}; "
        f"free some space or choose a folder you may write to"
    )
