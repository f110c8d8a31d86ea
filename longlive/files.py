"""Files as this pack reads and writes them: regular files only, written whole or not at all.

Knows paths and bytes, no tensor and no format. Paths and names come from outside and are not trusted.
"""

import contextlib
import os
import stat
import time
import uuid
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, where a file that is open cannot be removed anyway
    fcntl = None

ABANDONED_SECONDS = 3600  # a part older than this may come from a process that was killed
PART = ".part"  # what a file is called while it is written
MAX_TEXT_BYTES = 64 << 20  # of a text that is read into memory whole

IRREGULAR = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
# Only Unix has NONBLOCK, NOCTTY and CLOEXEC, only Windows has BINARY. Without NONBLOCK, opening a pipe waits for its
# writer.
READ_FLAGS = os.O_RDONLY | sum(getattr(os, f"O_{name}", 0) for name in ("NONBLOCK", "NOCTTY", "CLOEXEC", "BINARY"))

# Names that Windows takes for devices, whatever follows the first dot.
DEVICE_NAMES = frozenset(
    ["con", "prn", "aux", "nul", "conin$", "conout$"]
    + [f"{port}{number}" for port in ("com", "lpt") for number in "0123456789¹²³"]
)
FORBIDDEN_IN_NAMES = frozenset('<>:"/\\|?*')  # of Windows
MAX_NAME_BYTES = 200  # file systems allow 255, endings and counters included


def check_regular(path: Path) -> None:
    """Raise OSError for anything but a regular file. Never waits. For libraries that open files by name.

    The error's `strerror` gives the reason in a phrase; where it is None, the error's text does.
    """
    try:
        mode = path.stat().st_mode
    except ValueError as error:  # a null byte, half a surrogate pair
        raise OSError("its name is not a file name") from error
    _refuse_irregular(mode)


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file to read its bytes. Never waits, not even for a pipe. Raises OSError as `check_regular`."""
    check_regular(path)
    handle = os.open(path, READ_FLAGS)
    try:
        _refuse_irregular(os.fstat(handle).st_mode)  # it may have been replaced since
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read_bytes(path: Path, limit: int = MAX_TEXT_BYTES) -> bytes:
    """Read a regular file of at most `limit` bytes into memory. Raises OSError as `check_regular`."""
    with open_regular(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise OSError(f"it is larger than {limit:,} bytes")
    return content


def read_text(path: Path, limit: int = MAX_TEXT_BYTES) -> str:
    """Read UTF-8 text of at most `limit` bytes; keep its line ends, drop its byte order mark.

    Raises OSError as `check_regular`, also for text that is not UTF-8.
    """
    content = read_bytes(path, limit)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise OSError(f"line {line} is not UTF-8") from error


def find_inside(folder: Path, name: str, suffix: str = "") -> Path | None:
    """Find the path of a user's file name; None for a name that leaves the folder or is invalid on some system.

    A name may have folders, separated by /. Symbolic links are followed before the path is checked.
    """
    if not is_plain_path(name):
        return None
    folder = folder.resolve()
    try:
        path = (folder / f"{name}{suffix}").resolve()
    except (OSError, RuntimeError):  # a loop of links
        return None
    return path if folder in path.parents else None


def is_plain_path(name: str) -> bool:
    """Whether `name` is a plain name, or several separated by /: folders and a name."""
    return len(name) <= MAX_NAME_BYTES and all(map(is_plain_name, name.split("/")))


def is_plain_name(name: str) -> bool:
    """Whether `name` is valid for a visible file on all systems: not `.x`, `a.`, `a `, `NUL.txt`, `a:b` or too long."""
    return (
        name.isprintable()
        and name == name.strip()
        and not name.startswith(".")
        and not name.endswith(".")
        and 0 < len(name.encode()) <= MAX_NAME_BYTES
        and not FORBIDDEN_IN_NAMES & set(name)
        and name.split(".")[0].rstrip().lower() not in DEVICE_NAMES
    )


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give the path of an empty file to write; when the `with` block succeeds, replace `path` by it.

    `path` holds the old file or the whole new one, never a part, even after a power cut: the new file and its folder
    are flushed to the disk. After an error nothing is left behind. Raises OSError if the disk refuses.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.parent / f".{uuid.uuid4().hex}{PART}"
    try:
        part.touch()
        mode = part.stat().st_mode  # some writers, such as safetensors, make files readable only by their owner
        with claim(part):
            yield part
        part.chmod(mode)
        flush(part)
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise
    with contextlib.suppress(OSError):  # Windows cannot open a folder
        flush(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically, with its own line ends. Raises OSError if the disk refuses."""
    with atomic_write(path) as part:
        part.write_text(text, encoding="utf-8", newline="")


@contextlib.contextmanager
def claim(path: Path) -> Iterator[None]:
    """Mark a file as in use (a shared lock) until the `with` block or the process ends. Does nothing on Windows."""
    if fcntl is None:
        yield
        return
    with path.open("rb") as file:
        with contextlib.suppress(OSError):  # a disk without locks
            fcntl.flock(file, fcntl.LOCK_SH)
        yield


def is_claimed(path: Path) -> bool:
    """Whether a process claims a file. Raises OSError as `open_regular`."""
    if fcntl is None:
        return False
    with open_regular(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def sweep(part: Path) -> None:
    """Remove an unfinished file that a killed process left. A claimed one stays, however old it is."""
    with contextlib.suppress(OSError):
        if time.time() - part.stat().st_mtime > ABANDONED_SECONDS and not is_claimed(part):
            part.unlink()


def flush(path: Path) -> None:
    """Wait until a file or a folder is on the disk."""
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _refuse_irregular(mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise OSError(f"it is {IRREGULAR.get(stat.S_IFMT(mode), 'something else')}, not a file")
