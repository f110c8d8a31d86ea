"""A film plays at every moment, goes back without a trace, and is whole after a kill or a full disk."""

import errno
import itertools
import os
import pickle
import subprocess
import sys
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import av
import pytest
import torch

from longlive.errors import VideoError
from longlive.video import film as film_module
from longlive.video.film import FILM, INDEX, Film
from longlive.video.fragments import Encoding, Fragment
from longlive.video.writer import VideoWriter

LENGTHS = 9, 12, 12, 12, 12


def draw_frames(count: int, seed: int, rows: int = 32) -> torch.Tensor:
    return torch.randint(256, (count, rows, 32, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


@pytest.fixture(scope="module")
def fragments() -> list[Fragment]:
    starts = [sum(LENGTHS[:n]) for n in range(len(LENGTHS))]
    return [
        Encoding().encode(draw_frames(n, seed), start)
        for seed, (n, start) in enumerate(zip(LENGTHS, starts, strict=True))
    ]


@pytest.fixture(scope="module")
def others(fragments) -> list[Fragment]:
    """Another way from the third fragment on."""
    return [Encoding().encode(draw_frames(12, 10 + n), sum(LENGTHS[:n])) for n in (2, 3)]


def count_frames(path: Path) -> int:
    """Decode a file; its frames must follow each other."""
    with av.open(path) as container:
        times = [frame.pts for frame in container.decode(video=0)]
    assert all(a < b for a, b in pairwise(times))
    return len(times)


def join(fragments) -> bytes:
    return fragments[0].header + b"".join(fragment.media for fragment in fragments)


def grow(film: Film, fragments) -> Film:
    for fragment in fragments:
        film.append(fragment)
    return film


def test_a_film_plays_up_to_its_last_fragment_and_becomes_an_ordinary_file(tmp_path, fragments):
    film = Film.create(tmp_path / "film")
    assert (film.state.codec, film.state.size, film.state.length) == ("", (0, 0), 0)
    for number, fragment in enumerate(fragments):
        film.append(fragment)
        assert film.path.read_bytes() == join(fragments[: number + 1])
        assert count_frames(film.path) == film.num_frames == sum(LENGTHS[: number + 1])
    assert film.state.codec.startswith("avc1.64")
    assert film.state.size == (32, 32)
    with VideoWriter(tmp_path / "video.mp4", metadata={"prompt": "{}"}) as writer:
        for fragment in fragments:
            writer.append(fragment)
    film.save(tmp_path / "saved.mp4", {"prompt": "{}"})
    assert (tmp_path / "saved.mp4").read_bytes() == (tmp_path / "video.mp4").read_bytes()
    film.discard()
    assert not film.folder.exists()


def test_after_a_rewind_the_film_is_as_if_it_had_gone_no_further(tmp_path, fragments, others):
    film = grow(Film.create(tmp_path), fragments)
    film.rewind(2)
    assert film.path.read_bytes() == join(fragments[:2])
    grow(film, others)
    assert film.path.read_bytes() == join([*fragments[:2], *others])
    assert Film.open(tmp_path).state == film.state
    film.rewind(0)
    assert film.path.read_bytes() == b""
    assert grow(film, others[:1]).state.header == others[0].header


def test_an_address_names_the_same_bytes_or_none(tmp_path, fragments, others):
    film = grow(Film.create(tmp_path), fragments)
    before = film.state
    addresses = [(piece.number, piece.count) for piece in film.pieces]
    assert [film.read_piece(*address) for address in addresses] == [fragment.media for fragment in fragments]
    film.rewind(2)
    grow(film, others)
    film = Film.open(tmp_path)
    assert [film.read_piece(*address) for address in addresses[2:]] == [None] * 3
    assert film.read_piece(2, film.pieces[2].count) == others[0].media
    assert film.read_piece(-1, film.pieces[-1].count) is None
    kept = before.pieces[1].end
    assert film.read_range(before, 5, kept) == join(fragments)[5:kept]
    assert film.read_range(before, 5, kept + 1) is None


def test_a_block_without_frames_has_a_piece_without_bytes(tmp_path, fragments):
    film = grow(Film.create(tmp_path), [Fragment(b"", b"", 0), fragments[0], Fragment(b"", b"", 0), fragments[1]])
    assert [piece.num_frames for piece in film.pieces] == [0, 9, 0, 12]
    assert film.path.read_bytes() == join(fragments[:2])
    assert Film.open(tmp_path).state == film.state


class Killed(BaseException):
    """Stands for SIGKILL."""


def make_changes(film: Film, changes, cut: tuple[int, float], monkeypatch) -> int:
    """Make changes to a film; be killed in a write, with a part of it done. Return how many were made."""
    put_bytes, (number, part) = film_module.put_bytes, cut
    calls = done = 0

    def put_part(path, start, content):
        nonlocal calls
        calls += 1
        put_bytes(path, start, content[: int(len(content) * part)] if calls > number else content)
        if calls > number:
            raise Killed

    with monkeypatch.context() as patch, suppress(Killed):
        patch.setattr(film_module, "put_bytes", put_part)
        for change, value in changes:
            change(film, value)
            done += 1
    return done


def test_killed_within_any_write_the_film_opens_and_goes_on(tmp_path, fragments, others, monkeypatch):
    changes = [*((Film.append, f) for f in fragments[:4]), (Film.rewind, 2), *((Film.append, f) for f in others)]
    states = [fragments[:n] for n in range(5)] + [[*fragments[:2], *others[:n]] for n in range(3)]
    seen = set()
    for number, part in itertools.product(range(16), (0.0, 0.5, 1.0)):
        folder = tmp_path / f"{number} {part}"
        done = make_changes(Film.create(folder), changes, (number, part), monkeypatch)
        film = Film.open(folder)
        [found] = [n for n in {done, min(done + 1, 7)} if len(states[n]) == len(film.pieces)]
        assert film.path.read_bytes() == (join(states[found]) if found else b"")
        for change, value in changes[found:]:
            change(film, value)
        assert film.path.read_bytes() == join(states[-1])
        assert Film.open(folder).state == film.state
        seen.add((done, found))
    assert seen == {(n, n) for n in range(8)} | {(n, n + 1) for n in range(7)}


KILLED = """
import os, pickle, signal, sys
from pathlib import Path
from longlive.video.film import FILM, Film

fragments = pickle.loads(Path(sys.argv[1]).read_bytes())
folder = Path(sys.argv[2])
film = Film.create(folder)
for kill in range(20):
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        film = Film.open(folder)
        while True:
            if len(film.pieces) == len(fragments):
                film.rewind(kill % 4 + 1)
            film.append(fragments[len(film.pieces)])
            os.write(writer, b".")
    for _ in range(kill + 1):
        os.read(reader, 1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(reader), os.close(writer)
    (folder.parent / f"{kill}.mp4").write_bytes((folder / FILM).read_bytes())
    film = Film.open(folder)
    media = [film.read_piece(piece.number, piece.count) for piece in film.pieces]
    assert media == [fragment.media for fragment in fragments[:len(media)]], kill
    (folder.parent / f"{kill}.txt").write_text(str(film.num_frames))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="it has no fork")
def test_killed_at_twenty_instants_the_file_plays_all_that_was_finished(tmp_path, fragments):
    (tmp_path / "fragments").write_bytes(pickle.dumps(fragments))
    arguments = [sys.executable, "-c", KILLED, str(tmp_path / "fragments"), str(tmp_path / "film")]
    subprocess.run(arguments, check=True)
    for kill in range(20):
        assert count_frames(tmp_path / f"{kill}.mp4") >= int((tmp_path / f"{kill}.txt").read_text()) > 0


@pytest.mark.parametrize("full", [FILM, INDEX])
def test_a_full_disk_loses_nothing_and_the_film_goes_on_when_there_is_room(tmp_path, fragments, monkeypatch, full):
    film = grow(Film.create(tmp_path), fragments[:2])
    state, files = film.state, [(tmp_path / name).read_bytes() for name in (FILM, INDEX)]
    put_bytes = film_module.put_bytes

    def refuse(path, start, content):
        refused = path.name == full and content
        put_bytes(path, start, content[:9] if refused else content)
        if refused:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(film_module, "put_bytes", refuse)
    with pytest.raises(VideoError, match=r"after 21 frames: No space left on device; free some space"):
        film.append(fragments[2])
    assert (film.state, [(tmp_path / name).read_bytes() for name in (FILM, INDEX)]) == (state, files)
    monkeypatch.setattr(film_module, "put_bytes", put_bytes)
    grow(film, fragments[2:])
    assert film.path.read_bytes() == join(fragments)
    assert Film.open(tmp_path).state == film.state


def test_what_the_disk_has_lost_is_dropped_with_all_after_it(tmp_path, fragments):
    film = grow(Film.create(tmp_path), fragments)
    content = bytearray(film.path.read_bytes())
    start = film.pieces[3].offset
    content[start : start + 8] = bytes(8)
    film.path.write_bytes(content)
    opened = Film.open(tmp_path)
    assert opened.pieces == film.pieces[:3]
    assert opened.path.read_bytes() == join(fragments[:3])
    assert grow(opened, fragments[3:]).pieces[3].count == 6  # an address is not used again
    film.path.write_bytes(b"")
    assert Film.open(tmp_path).pieces == ()


INDEX_LINES = (
    "",
    "notes",
    "[]",
    '{"version":2,"fps":"16","crf":18}',
    '{"version":1,"fps":"1/0","crf":18}',
    '{"version":1,"fps":"16","crf":null}',
    '{"version":1,"fps":"16","crf":18}\n{"count":1,"frames":-1,"bytes":5,"key":""}',
    '{"version":1,"fps":"16","crf":18}\n{"count":2,"frames":1,"bytes":5,"key":""}',
    '{"version":1,"fps":"16","crf":18}\n{"count":1,"frames":"1","bytes":5,"key":""}',
    '{"version":1,"fps":"16","crf":18}\n{"keep":1}',
)


def test_what_is_no_film_is_refused(tmp_path, fragments):
    with pytest.raises(VideoError, match=r"there is no film in .*: No such file"):
        Film.open(tmp_path)
    Film.create(tmp_path)
    with pytest.raises(VideoError, match="holds a film already"):
        Film.create(tmp_path)
    for text in INDEX_LINES:
        (tmp_path / INDEX).write_text(f"{text}\n")
        with pytest.raises(VideoError, match="holds no film that LongLive can continue"):
            Film.open(tmp_path)
    film = grow(Film.create(tmp_path / "other"), fragments[:1])
    with pytest.raises(VideoError, match="frames of another size or encoder"):
        film.append(Encoding().encode(draw_frames(3, 0, rows=64), 9))
    with pytest.raises(VideoError, match="holds no frame yet"):
        Film.create(tmp_path / "empty").save(tmp_path / "video.mp4", {})
