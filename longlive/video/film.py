"""A film: the growing file of a video while it is made. It plays at any moment, also after the process was killed.

Its folder holds two files. `film.mp4` is a header and the media of all fragments so far. `film.jsonl` is an index: a
line for every change. A change counts once its line is whole, so what a killed process left half written is trimmed.
"""

import json
import os
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from operator import attrgetter
from pathlib import Path
from typing import BinaryIO

from ..errors import VideoError
from ..files import atomic_write, open_regular, read_text, write_text
from ..units import FPS
from .fragments import CRF, HEADER_BOXES, HEADER_BYTES, MEDIA_BOXES, Encoding, Fragment, remux
from .writer import as_video_error

FILM, INDEX = "film.mp4", "film.jsonl"
INDEX_VERSION = 1
MAX_HEADER_BYTES = 1 << 16  # of a film; one has about 800
CODEC_PLACE, SIZE_PLACE = slice(5, 8), slice(28, 32)  # behind the names of the boxes avcC and avc1


@dataclass(frozen=True, slots=True)
class FilmPiece:
    """A fragment as part of a film. `number` and `count` together name bytes that never change."""

    number: int  # of the block it shows, from 0
    count: int  # of all fragments appended to the film so far, this one included; a rewind does not lower it
    first_frame: int
    num_frames: int  # 0 for a block whose frames come with the next one
    offset: int  # in the file
    length: int
    key: str  # what its bytes follow from, as a hash; empty if nobody gave one

    @property
    def end(self) -> int:
        return self.offset + self.length

    @property
    def end_frame(self) -> int:
        return self.first_frame + self.num_frames


@dataclass(frozen=True, slots=True)
class FilmState:
    """What a film shows at one moment."""

    version: int = 0  # how many changes led to it
    count: int = 0  # how many fragments were appended so far
    header: bytes = b""
    pieces: tuple[FilmPiece, ...] = ()

    @property
    def length(self) -> int:
        """The bytes of the file."""
        return self.pieces[-1].end if self.pieces else 0

    @property
    def num_frames(self) -> int:
        return self.pieces[-1].end_frame if self.pieces else 0

    @property
    def codec(self) -> str:
        """The codec as MediaSource names it; empty without a fragment."""
        codec = find_box(self.header, b"avcC")[CODEC_PLACE].hex()
        return f"avc1.{codec}" if codec else ""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels; 0 without a fragment."""
        size = find_box(self.header, b"avc1")[SIZE_PLACE]
        return int.from_bytes(size[:2], "big"), int.from_bytes(size[2:], "big")

    def extended_by(self, header: bytes, num_frames: int, length: int, key: str) -> "FilmState":
        """Return the state after a fragment whose media have `length` bytes."""
        header = self.header or (header if num_frames else b"")
        offset = self.length or len(header)
        piece = FilmPiece(len(self.pieces), self.count + 1, self.num_frames, num_frames, offset, length, key)
        return FilmState(self.version + 1, piece.count, header, (*self.pieces, piece))

    def rewound_to(self, num_pieces: int) -> "FilmState":
        """Return the state with the first pieces alone."""
        pieces = self.pieces[:num_pieces]
        header = self.header if any(piece.num_frames for piece in pieces) else b""
        return FilmState(self.version + 1, self.count, header, pieces)


class Film:
    """Grows in a folder, fragment by fragment, and can be rewound. One thread may write while others read.

    No file is open between two calls. `on_change` is called after every change, by the thread that made it.
    """

    def __init__(self, folder: Path, encoding: Encoding, state: FilmState, index_length: int) -> None:
        self.folder, self.encoding = folder, encoding
        self.path, self._index = folder / FILM, folder / INDEX
        self._state, self._index_length = state, index_length
        self._lock = threading.Lock()  # of the state and the bytes it names
        self.on_change: Callable[[], object] = lambda: None

    @classmethod
    def create(cls, folder: str | Path, *, fps: int | Fraction = FPS, crf: float = CRF) -> "Film":
        """Begin a film in a folder, which is created. Raises VideoError if it holds one or the disk refuses."""
        folder, encoding = Path(folder), Encoding(Fraction(fps), crf)
        line = write_line({"version": INDEX_VERSION, "fps": str(encoding.fps), "crf": crf})
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if (folder / INDEX).exists() or ((folder / FILM).exists() and (folder / FILM).stat().st_size):
                raise VideoError(f"{folder} holds a film already; choose another folder")
            (folder / FILM).touch()
            write_text(folder / INDEX, line)
        except OSError as error:
            raise as_video_error(folder / FILM, error, 0) from error
        return cls(folder, encoding, FilmState(), len(line))

    @classmethod
    def open(cls, folder: str | Path) -> "Film":
        """Open the film in a folder; trim what a killed process left half written. Raises VideoError if there is none.

        Fragments that the disk has lost are dropped, with all after them.
        """
        folder = Path(folder)
        try:
            text = read_text(folder / INDEX)
            lines = text[: text.rfind("\n") + 1].splitlines(keepends=True)
            encoding = read_encoding(lines[0])
            with open_regular(folder / FILM) as file:
                state = read_changes(lines[1:], read_header(file))
                num_whole = count_whole_pieces(file, state.pieces)
            film = cls(folder, encoding, state, len("".join(lines)))
            if num_whole < len(state.pieces):
                film.rewind(num_whole)
            film._restore()
        except OSError as error:
            raise VideoError(f"there is no film in {folder}: {error.strerror or error}; choose another") from error
        except (ValueError, KeyError, IndexError, TypeError, ZeroDivisionError, RecursionError) as error:
            raise VideoError(f"{folder} holds no film that LongLive can continue: {error!r}; begin another") from error
        return film

    @property
    def state(self) -> FilmState:
        return self._state

    @property
    def pieces(self) -> tuple[FilmPiece, ...]:
        return self._state.pieces

    @property
    def num_frames(self) -> int:
        return self._state.num_frames

    def append(self, fragment: Fragment, key: str = "") -> None:
        """Append the fragment of the next block. `key` is kept with it, to recognise it later.

        Raises VideoError for a fragment of another size or encoder, or if the disk refuses; the film is then unchanged.
        """
        before = self._state
        if fragment.num_frames and before.header not in (b"", fragment.header):
            raise VideoError(f"{self.path} has frames of another size or encoder; begin another film")
        after = before.extended_by(fragment.header, fragment.num_frames, len(fragment.media), key)
        header, piece = after.header[len(before.header) :], after.pieces[-1]
        facts = {"count": piece.count, "frames": piece.num_frames, "bytes": piece.length, "key": key}
        with self._report_disk_errors():
            put_bytes(self.path, before.length, header + hide_boxes(fragment.media))
            show_boxes(self.path, piece.offset, fragment.media)
            index_length = self._write_change(facts)
        self._state, self._index_length = after, index_length
        self.on_change()

    def rewind(self, num_pieces: int) -> None:
        """Drop all pieces but the first ones. Raises VideoError if the disk refuses."""
        assert 0 <= num_pieces <= len(self.pieces), num_pieces
        if num_pieces == len(self.pieces):
            return
        with self._report_disk_errors():
            index_length = self._write_change({"keep": num_pieces})
        with self._lock:
            self._state, self._index_length = self._state.rewound_to(num_pieces), index_length
            self._restore()
        self.on_change()

    def read_piece(self, number: int, count: int) -> bytes | None:
        """Read the media of a piece; None if the film does not have it, or has another in its place.

        Raises OSError if the disk refuses.
        """
        state = self._state
        if not 0 <= number < len(state.pieces) or state.pieces[number].count != count:
            return None
        piece = state.pieces[number]
        return self.read_range(state, piece.offset, piece.end)

    def read_range(self, state: FilmState, start: int, stop: int) -> bytes | None:
        """Read bytes of the file as it was in a state; None if a rewind has dropped some of them since.

        Raises OSError if the disk refuses.
        """
        last = bisect_left(state.pieces, stop, key=attrgetter("offset")) - 1
        with self._lock:
            if last >= 0 and state.pieces[last : last + 1] != self.pieces[last : last + 1]:
                return None
            with open_regular(self.path) as file:
                file.seek(start)
                return file.read(stop - start)

    def save(self, path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
        """Write the film into an ordinary file. Raises VideoError if it has no frame or the disk refuses."""
        if not self.num_frames:
            raise VideoError(f"{self.folder} holds no frame yet; save it when a block is finished")
        path = Path(path)
        try:
            with atomic_write(path) as part:
                remux(self.path, part, metadata or {})
        except OSError as error:
            raise as_video_error(path, error, self.num_frames) from error

    def discard(self) -> None:
        """Delete the film, and its folder if nothing else is in it."""
        with self._lock:
            self._state = FilmState(self._state.version + 1, self._state.count)
            for path in (self._index, self.path):
                with suppress(OSError):
                    path.unlink()
            with suppress(OSError):
                self.folder.rmdir()

    def _write_change(self, facts: Mapping[str, object]) -> int:
        """Write a line into the index; return the length of the index then."""
        line = write_line(facts)
        put_bytes(self._index, self._index_length, line.encode())
        return self._index_length + len(line)

    def _restore(self) -> None:
        """Trim both files to what counts."""
        for path, length in ((self.path, self._state.length), (self._index, self._index_length)):
            with suppress(OSError):  # the next append trims, too
                put_bytes(path, length, b"")

    @contextmanager
    def _report_disk_errors(self) -> Iterator[None]:
        """Turn an OSError into a VideoError; the files hold what they held before."""
        try:
            yield
        except OSError as error:
            self._restore()
            raise as_video_error(self.path, error, self.num_frames) from error


def find_box(header: bytes, name: bytes) -> bytes:
    """Find what begins with a box's name; nothing if there is no such box."""
    start = header.find(name)
    return header[start:] if start >= 0 else b""


def write_line(facts: Mapping[str, object]) -> str:
    return json.dumps(facts, separators=(",", ":")) + "\n"


def hide_boxes(media: bytes) -> bytes:
    """Make boxes into one that players skip. So a file never ends with half a fragment, which some cannot decode."""
    return len(media).to_bytes(4, "big") + b"free" + media[HEADER_BYTES:] if media else b""


def show_boxes(path: Path, start: int, media: bytes) -> None:
    """Undo `hide_boxes` in a file, in one write. Raises OSError if the disk refuses."""
    with path.open("r+b", buffering=0) as file:
        file.seek(start)
        file.write(media[:HEADER_BYTES])


def put_bytes(path: Path, start: int, content: bytes) -> None:
    """Let a file end with `content` from `start` on. Raises OSError if the disk refuses; some of it may be there."""
    with path.open("r+b", buffering=0) as file:
        file.truncate(start)
        file.seek(start)
        while content:
            content = content[file.write(content) :]


def read_encoding(line: str) -> Encoding:
    """Read the first line of an index. Raises ValueError, KeyError or TypeError if it is not one."""
    facts = json.loads(line)
    if facts["version"] != INDEX_VERSION:
        raise ValueError(f"version {facts['version']}")
    crf = facts["crf"]
    if not isinstance(crf, int | float):
        raise TypeError(f"crf {crf}")
    return Encoding(Fraction(facts["fps"]), crf)  # as it was: 18.0 has another identity than 18


def read_changes(lines: Sequence[str], header: bytes) -> FilmState:
    """Read the state that the changes of an index lead to. Raises ValueError, KeyError or TypeError for other lines."""
    state = FilmState()
    for line in lines:
        facts = json.loads(line)
        if "keep" in facts:
            num_pieces = facts["keep"]
            state = state.rewound_to(num_pieces)
            if len(state.pieces) != num_pieces:
                raise ValueError(line)
            continue
        num_frames, length = facts["frames"], facts["bytes"]
        if facts["count"] != state.count + 1 or min(num_frames, length) < 0:
            raise ValueError(line)
        state = state.extended_by(header, num_frames, length, str(facts["key"]))
    return state


def read_header(file: BinaryIO) -> bytes:
    """Read the boxes of a film before its first fragment."""
    header = b""
    for name, start, end in list_boxes(file, 0):
        if name not in HEADER_BOXES or end > MAX_HEADER_BYTES:
            break
        file.seek(start)
        header += file.read(end - start)
    return header


def count_whole_pieces(file: BinaryIO, pieces: Sequence[FilmPiece]) -> int:
    """Count the first pieces whose boxes are where they should be."""
    for piece in pieces:
        start = piece.offset
        for name, _, end in list_boxes(file, start):
            if start == piece.end or name not in MEDIA_BOXES:
                break
            start = end
        if start != piece.end:
            return piece.number
    return len(pieces)


def list_boxes(file: BinaryIO, start: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield the name, first byte and end of each whole box of an MP4 from `start` on."""
    length = file.seek(0, os.SEEK_END)
    while True:
        file.seek(start)
        box = file.read(HEADER_BYTES)
        end = start + int.from_bytes(box[:4], "big")
        if not start + HEADER_BYTES <= end <= length:
            return
        yield box[4:], start, end
        start = end
