"""A video file holds what was written, plays however the writing ends, and says what the disk refused."""

import resource
import sys
from fractions import Fraction

import av
import pytest
import torch

from longlive.errors import VideoError
from longlive.video import VideoWriter, render, to_bytes


def frames_of(path):
    with av.open(str(path)) as container:
        return torch.stack([torch.from_numpy(f.to_ndarray(format="rgb24")) for f in container.decode(video=0)])


def flat(*levels, rows=18, columns=30):
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
        writer.write(flat(*levels[:2]))
        writer.write(flat(*levels[2:])[0])
        assert not path.exists()
    assert writer.num_frames == 5
    assert [p.name for p in path.parent.iterdir()] == ["clip.mp4"]
    read = frames_of(path)[:, 9, 15].float()
    torch.testing.assert_close(read, to_bytes(flat(*levels))[:, 9, 15].float(), rtol=0, atol=4)


def test_the_file_says_what_it_is(path):
    with VideoWriter(path, fps=Fraction(30000, 1001)) as writer:
        writer.write(flat(0, 0, 0))
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        codec = stream.codec_context
        assert (codec.name, codec.pix_fmt, stream.frames) == ("h264", "yuv420p", 3)
        assert (codec.colorspace, codec.color_range, codec.color_primaries, codec.color_trc) == (6, 1, 1, 1)
        assert stream.average_rate == Fraction(30000, 1001)


def test_bytes_are_rounded_to_the_nearest():
    levels = torch.arange(256.0)
    for aside in (-0.49, 0.49):
        pixels = ((levels + aside) / 127.5 - 1).view(-1, 1, 1, 1).expand(-1, 3, 1, 1)
        assert to_bytes(pixels)[:, 0, 0, 0].tolist() == levels.tolist()
    assert to_bytes(torch.tensor([-9.0, 9.0]).view(2, 1, 1, 1)).flatten().tolist() == [0, 255]


def test_half_precision_pixels_lose_nothing_more_on_the_way():
    pixels = torch.linspace(-1, 1, 999).bfloat16().view(-1, 1, 1, 1)
    assert torch.equal(to_bytes(pixels), to_bytes(pixels.double()))


def test_rendering_decodes_and_writes_block_by_block(path):
    class Doubling:
        """A decoder that holds one pixel frame back until the end."""

        def push(self, latents_BFCHW):
            return flat(*[0.0] * latents_BFCHW.shape[1])

        def flush(self):
            return flat(1.0)

    with VideoWriter(path) as writer:
        render((torch.zeros(1, n, 16, 1, 1) for n in (3, 0, 2)), Doubling(), writer)
    assert writer.num_frames == len(frames_of(path)) == 6


def broken_off(path, error):
    with VideoWriter(path) as writer:
        writer.write(flat(*[0.1 * i for i in range(7)]))
        raise error


def test_an_interrupted_video_plays_to_its_last_frame(path):
    with pytest.raises(KeyboardInterrupt):
        broken_off(path, KeyboardInterrupt)
    assert len(frames_of(path)) == 7


def test_a_failure_leaves_no_file_that_looks_whole(path):
    with pytest.raises(RuntimeError):
        broken_off(path, RuntimeError)
    assert not list(path.parent.iterdir())


def test_no_file_appears_without_a_frame(path):
    with VideoWriter(path) as writer:
        writer.write(torch.empty(1, 0, 3, 0, 0))
    with pytest.raises(ZeroDivisionError), VideoWriter(path) as writer:
        writer.write(flat(1 / 0))
    assert not list(path.parent.iterdir())


def test_an_older_video_stays_until_the_new_one_is_whole(path):
    for num_frames in (1, 2):
        with VideoWriter(path) as writer:
            writer.write(flat(*[0.0] * num_frames))
            assert path.exists() == (num_frames == 2)
    assert len(frames_of(path)) == 2


def test_closing_twice_is_closing_once(path):
    writer = VideoWriter(path)
    writer.write(flat(0))
    writer.close()
    writer.close()
    assert len(frames_of(path)) == 1


def test_a_missing_folder_is_named_before_any_work(tmp_path):
    with pytest.raises(VideoError, match=r"no folder .*nowhere for clip\.mp4; make it"):
        VideoWriter(tmp_path / "nowhere" / "clip.mp4")


@pytest.mark.skipif(sys.platform != "linux", reason="/proc stands in for a read-only disk")
def test_a_read_only_disk_is_named_at_the_first_frame():
    with pytest.raises(VideoError, match=r"/proc/clip\.mp4 cannot be written after 0 frames: .*choose a folder"):
        VideoWriter("/proc/clip.mp4").write(flat(0))


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
        VideoWriter(path).write(flat(0, rows=17))


def test_a_frame_of_another_size_is_refused(path):
    def changing():
        with VideoWriter(path) as writer:
            writer.write(flat(0, 0))
            writer.write(flat(0, rows=20))

    with pytest.raises(VideoError, match=r"\(20, 30\) cannot follow those of \(18, 30\)"):
        changing()
    assert not list(path.parent.iterdir())


def test_a_batch_of_videos_is_refused(path):
    with pytest.raises(ValueError, match="one video, but the batch holds 2"):
        VideoWriter(path).write(flat(0).expand(2, -1, -1, -1, -1))
