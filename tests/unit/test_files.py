"""Files are read only if they are files, names are plain, and what is written is there whole or not at all."""

import os
import socket
import stat
from pathlib import Path

import pytest

from longlive import files
from longlive.files import (
    atomic_write,
    check_regular,
    find_inside,
    is_claimed,
    is_plain_name,
    open_regular,
    read_bytes,
    read_text,
)

UNIX = pytest.mark.skipif(os.name == "nt", reason="needs pipes and devices of Unix")


@pytest.fixture
def irregular(tmp_path) -> dict[str, Path]:
    """Paths that are no file, by the word for them."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "socket"))  # a whole path may be too long for a socket
    return {
        "a pipe": tmp_path / "link",
        "a socket": tmp_path / "socket",
        "a device": Path("/dev/zero"),
        "a folder": tmp_path,
    }


@UNIX
@pytest.mark.parametrize("read", [check_regular, open_regular, read_bytes, read_text, is_claimed])
@pytest.mark.parametrize("kind", ["a pipe", "a socket", "a device", "a folder"])
def test_what_is_not_a_file_is_refused_without_waiting(irregular, read, kind):
    with pytest.raises(OSError, match=f"it is {kind}, not a file"):
        read(irregular[kind])


@UNIX
def test_a_pipe_put_in_the_place_of_a_file_is_not_waited_for(irregular, monkeypatch):
    monkeypatch.setattr(files, "check_regular", lambda path: None)
    with pytest.raises(OSError, match="it is a pipe"):
        open_regular(irregular["a pipe"])


@pytest.mark.parametrize("name", ["a\0b", "\ud800"])
def test_a_path_that_no_system_has_is_an_os_error(name):
    with pytest.raises(OSError, match="its name is not a file name"):
        open_regular(Path(name))


def test_a_missing_file_and_an_unreadable_one_have_different_messages(tmp_path):
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "none")


def test_no_more_than_the_limit_is_read(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    assert read_bytes(path, 5) == b"12345"
    with pytest.raises(OSError, match="it is larger than 4 bytes"):
        read_bytes(path, 4)


def test_text_keeps_its_line_ends_and_loses_its_byte_order_mark(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfa\r\nb\rc\n")
    assert read_text(path) == "a\r\nb\rc\n"


def test_text_that_is_not_utf8_names_the_line(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("a\nb\nÄ".encode("latin-1"))
    with pytest.raises(OSError, match="line 3 is not UTF-8"):
        read_text(path)


@pytest.mark.parametrize("name", ["my_film", "a b", "v1.2", "夜のボート", "console", "com10", "nullify.txt", "x" * 200])
def test_plain_names_are_accepted(name):
    assert is_plain_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "", " ", ".", "..", ".hidden", "a.", "a ", " a", "a/b", "a\\b", "a:b", "a?", "a*", 'a"', "<a", "a|b", "x" * 201,
        "a\0", "a\n", "a\x1b[2J", "a\u202eb", "\ud800", "CON", "nul", "NUL.txt", "com1.tar.gz", "LPT² .x", "aux .mp4",
    ],
)  # fmt: skip
def test_names_that_some_system_takes_for_something_else_are_refused(name):
    assert not is_plain_name(name)


def test_a_name_is_found_in_its_folder_and_below(tmp_path):
    assert find_inside(tmp_path, "film", ".mp4") == tmp_path.resolve() / "film.mp4"
    assert find_inside(tmp_path, "a/b") == tmp_path.resolve() / "a" / "b"


@pytest.mark.parametrize(
    "name", ["", "/", "/etc/passwd", "../a", "a/../../b", "a//b", "a/", "./a", "a/.b/c", "CON/a", "a/" * 100 + "b"]
)
def test_a_name_that_leaves_its_folder_is_refused(tmp_path, name):
    assert find_inside(tmp_path, name) is None


def test_a_link_is_followed_before_it_is_judged(tmp_path):
    folder, outside = tmp_path / "input", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    (folder / "away").symlink_to(outside)
    (folder / "here").symlink_to(folder / "a")
    (folder / "loop").symlink_to(folder / "loop")
    assert find_inside(folder, "here") == folder.resolve() / "a"
    assert find_inside(folder, "away/secret") is None
    assert find_inside(folder, "loop") is None


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")

    def write_half():
        with atomic_write(path) as part:
            part.write_text("half of the n")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "folder" / "a"
    with atomic_write(path) as part:
        part.write_text("old")
    with atomic_write(path) as part:
        part.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    events = []
    monkeypatch.setattr(files, "flush", lambda path: events.append(path.exists() and path.read_bytes()))
    monkeypatch.setattr(os, "replace", lambda part, path: events.append("renamed"))
    monkeypatch.setattr(Path, "read_bytes", lambda path: "flushed")
    with atomic_write(tmp_path / "a"):
        pass
    assert events == ["flushed", "renamed", "flushed"]


@UNIX
def test_a_written_file_may_be_read_by_whom_any_other_new_file_may(tmp_path):
    before = os.umask(0o022)
    try:
        with atomic_write(tmp_path / "a") as part:
            part.unlink()
            part.touch(mode=0o600)  # as safetensors does
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o644
