"""A video file holds what was written, plays however the writing ends, and reports what the disk refused."""

import gc
import resource
import signal
import subprocess
import sys
from contextlib import suppress
from fractions import Fraction

import av
import pytest
import torch

from longlive.errors import VideoError
from longlive.video.pixels import to_bytes
from longlive.video.writer import VideoWriter


def read_frames(path):
    with av.open(str(path)) as container:
        return torch.stack([torch.from_numpy(f.to_ndarray(format="rgb24")) for f in container.decode(video=0)])


def make_flat(*levels, rows=18, columns=30):
    """Pixel frames of one red each."""
    pixels = torch.zeros(1, len(levels), 3, rows, columns)
    pixels[:, :, 0] = torch.tensor(levels).view(1, -1, 1, 1)
    return pixels


@pytest.fixture
def path(tmp_path):
    return tmp_path / "clip.mp4"


def test_frames_come_back_in_order_and_colour(path):
    levels = [-1.0, -0.5, 0.0, 0.5, 1.0]
    with VideoWriter(path, crf=1) as writer:
        writer.write(make_flat(*levels[:2]))
        writer.write(make_flat(*levels[2:])[0])
        assert not path.exists()
        [growing] = path.parent.iterdir()
        assert len(read_frames(growing)) == 5  # it plays before it is finished
    assert writer.num_frames == 5
    assert [p.name for p in path.parent.iterdir()] == ["clip.mp4"]
    read = read_frames(path)[:, 9, 15].float()
    torch.testing.assert_close(read, to_bytes(make_flat(*levels))[:, 9, 15].float(), rtol=0, atol=4)


def test_a_hard_cut_inside_a_fragment_plays(path):
    """The encoder begins again there, with a key frame and another box."""
    generator = torch.Generator().manual_seed(0)
    pictures = [torch.rand(1, 3, 32, 48, generator=generator).expand(40, -1, -1, -1) * 2 - 1 for _ in range(3)]
    with VideoWriter(path) as writer:
        for _ in range(2):
            writer.write(torch.cat(pictures))
    with av.open(path) as container:
        keys = [frame.key_frame for frame in container.decode(video=0)]
    assert len(keys) == 240
    assert sum(keys) > 2  # more than one per fragment


def test_the_file_says_what_it_is(path):
    with VideoWriter(path, fps=Fraction(30000, 1001)) as writer:
        writer.write(make_flat(0, 0, 0))
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        codec = stream.codec_context
        assert (codec.name, codec.pix_fmt, stream.frames) == ("h264", "yuv420p", 3)
        assert (codec.colorspace, codec.color_range, codec.color_primaries, codec.color_trc) == (6, 1, 1, 1)
        assert stream.average_rate == Fraction(30000, 1001)


def break_off(path, error):
    with VideoWriter(path) as writer:
        writer.write(make_flat(*[0.1 * i for i in range(7)]))
        raise error


def test_an_interrupted_video_plays_to_its_last_frame(path):
    with pytest.raises(KeyboardInterrupt):
        break_off(path, KeyboardInterrupt)
    assert len(read_frames(path)) == 7


def test_a_failure_leaves_no_file_that_looks_whole(path):
    with pytest.raises(RuntimeError):
        break_off(path, RuntimeError)
    assert not list(path.parent.iterdir())


def test_no_file_appears_without_a_frame(path):
    with VideoWriter(path) as writer:
        writer.write(torch.empty(1, 0, 3, 0, 0))
    with pytest.raises(ZeroDivisionError), VideoWriter(path) as writer:
        writer.write(make_flat(1 / 0))
    assert not list(path.parent.iterdir())


def test_an_older_video_stays_until_the_new_one_is_whole(path):
    for num_frames in (1, 2):
        with VideoWriter(path) as writer:
            writer.write(make_flat(*[0.0] * num_frames))
            assert path.exists() == (num_frames == 2)
    assert len(read_frames(path)) == 2


def test_closing_twice_is_closing_once(path):
    writer = VideoWriter(path)
    writer.write(make_flat(0))
    writer.close()
    writer.close()
    assert len(read_frames(path)) == 1


def test_a_missing_folder_is_named_before_any_work(tmp_path):
    with pytest.raises(VideoError, match=r"no folder .*nowhere for clip\.mp4; make it"):
        VideoWriter(tmp_path / "nowhere" / "clip.mp4")


def test_a_name_that_is_too_long_is_a_video_error(tmp_path):
    with pytest.raises(VideoError, match=r"cannot be written after 0 frames: File name too long"):
        VideoWriter(tmp_path / f"{'x' * 300}.mp4").write(make_flat(0))


@pytest.mark.skipif(sys.platform != "linux", reason="/proc stands in for a read-only disk")
def test_a_read_only_disk_is_named_at_the_first_frame():
    with pytest.raises(VideoError, match=r"/proc/clip\.mp4 cannot be written after 0 frames: .*choose a folder"):
        VideoWriter("/proc/clip.mp4").write(make_flat(0))


@pytest.mark.skipif(sys.platform != "linux", reason="a limit on file size stands in for a full disk")
def test_a_full_disk_is_named_and_left_clean(path):
    noise = torch.rand(300, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(VideoError, match=r"frames: File too large; free some space"), VideoWriter(path) as writer:
            writer.write(noise)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(path.parent.iterdir())


def test_sizes_that_no_player_takes_are_refused(path):
    with pytest.raises(VideoError, match=r"30 x 17; H\.264 .* even sizes"):
        VideoWriter(path).write(make_flat(0, rows=17))


def test_a_frame_of_another_size_is_refused(path):
    def changing():
        with VideoWriter(path) as writer:
            writer.write(make_flat(0, 0))
            writer.write(make_flat(0, rows=20))

    with pytest.raises(VideoError, match=r"\(20, 30\) cannot follow those of \(18, 30\)"):
        changing()
    assert not list(path.parent.iterdir())


def test_a_batch_of_videos_is_refused(path):
    with pytest.raises(ValueError, match="one video, but the batch holds 2"):
        VideoWriter(path).write(make_flat(0).expand(2, -1, -1, -1, -1))


def make_noise(count=12, seed=0, rows=64, columns=64):
    return torch.rand(1, count, 3, rows, columns, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_a_finished_file_is_an_ordinary_one_whose_index_comes_first(path):
    with VideoWriter(path, metadata={"prompt": "{}"}) as writer:
        for count in (9, 12, 12):
            writer.write(make_noise(count))
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")
    assert b"moof" not in content
    with av.open(path) as container:
        [stream] = container.streams
        assert (stream.frames, container.metadata["prompt"]) == (33, "{}")
        assert [frame.pts * stream.time_base * 16 for frame in container.decode(stream)] == list(range(33))


def test_two_writers_of_one_path_share_no_file(path):
    first, second = VideoWriter(path), VideoWriter(path)
    for count in (3, 4):
        first.write(make_noise(count))
        second.write(make_noise(count + 10))
    second.close()
    assert len(read_frames(path)) == 27
    first.close()
    assert len(read_frames(path)) == 7
    assert [p.name for p in path.parent.iterdir()] == ["clip.mp4"]


def test_what_a_killed_process_left_plays_and_goes_with_the_next_video(path):
    code = "import os, signal, sys, torch; from longlive.video.writer import VideoWriter; w = VideoWriter(sys.argv[1])"
    code += "; [w.write(torch.zeros(n, 3, 16, 16)) for n in (9, 12)]; os.kill(os.getpid(), signal.SIGKILL)"
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == -signal.SIGKILL
    [growing] = path.parent.iterdir()
    assert len(read_frames(growing)) == 21
    with VideoWriter(path) as writer:
        writer.write(make_noise())
        assert not growing.exists()
    assert [p.name for p in path.parent.iterdir()] == ["clip.mp4"]


def interrupt_after(path, *counts, seed=0):
    with suppress(KeyboardInterrupt), VideoWriter(path) as writer:
        for number, count in enumerate(counts):
            writer.write(make_noise(count, seed + number))
        raise KeyboardInterrupt


def test_an_interrupted_video_does_not_replace_a_longer_one_that_begins_alike(path):
    with VideoWriter(path) as writer:
        for number, count in enumerate((9, 12, 12)):
            writer.write(make_noise(count, number))
    whole = path.read_bytes()
    interrupt_after(path, 9, 12)
    assert path.read_bytes() == whole
    interrupt_after(path, 9, 12, seed=5)  # another video, which was asked for under this name
    assert len(read_frames(path)) == 21


def test_an_interrupted_video_replaces_a_file_that_is_not_a_video(path):
    path.write_text("notes, not a video")
    interrupt_after(path, 9)
    assert len(read_frames(path)) == 9


@pytest.mark.parametrize("name", ["12:30.mp4", "a:b/clip.mp4", "file:clip.mp4"])
def test_a_name_with_a_colon_is_a_file_and_not_an_address(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    for count in (9, 3):  # the second is interrupted, and compared with the first
        with suppress(KeyboardInterrupt), VideoWriter(name) as writer:
            writer.write(make_noise(count, seed=count))
            if count == 3:
                raise KeyboardInterrupt
        assert len(read_frames(tmp_path / name)) == count


def test_a_folder_or_one_that_cannot_be_written_is_refused_at_once(tmp_path):
    with pytest.raises(VideoError, match="is a folder; give the name of a file"):
        VideoWriter(tmp_path)


TRACED = ("longlive/video/writer.py", "longlive/video/fragments.py", "longlive/video/pixels.py")


def interrupt_at(path, line):
    """Write a video, raise KeyboardInterrupt at line number `line` of those that writing runs; return how many ran."""
    count = 0

    def trace(frame, event, _):
        nonlocal count
        if not frame.f_code.co_filename.endswith(TRACED) or frame.f_code.co_name == "close_and_delete":
            return None
        if event == "line":
            count += 1
            if count == line:
                raise KeyboardInterrupt
        return trace

    try:
        with VideoWriter(path) as writer:
            sys.settrace(trace)
            for number, frames in enumerate((2, 3)):
                writer.write(make_noise(frames, number, rows=16, columns=16))
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(None)
    return count


def test_an_interrupt_at_any_line_leaves_the_old_file_or_a_new_one_that_plays(path):
    with VideoWriter(path) as writer:
        writer.write(make_noise(5, seed=9))
    old = path.read_bytes()
    path.unlink()
    lines = interrupt_at(path, 0)
    whole = path.read_bytes()
    assert lines > 60
    outcomes = set()
    gc.freeze()  # or else each collection goes through all that the tests before left
    for line in range(1, lines + 1):
        path.write_bytes(old)
        interrupt_at(path, line)
        gc.collect()
        found = path.read_bytes()
        outcomes.add("old" if found == old else "whole" if found == whole else f"{len(read_frames(path))} frames")
        assert [p.name for p in path.parent.iterdir()] == ["clip.mp4"], line
    gc.unfreeze()
    assert outcomes <= {"old", "whole", "2 frames"}
    assert {"old", "whole", "2 frames"} <= outcomes
