"""A video file is the same to the byte however much of it was stored, and what was stored is not decoded again."""

from pathlib import Path
from unittest.mock import Mock

import av
import pytest
import torch

from longlive.errors import VideoError
from longlive.model.vae import WanVAE
from longlive.model.vae_streams import StreamingDecoder
from longlive.session.block_store import Store
from longlive.video.film import Film
from longlive.video.pixels import to_bytes
from longlive.video.render import VideoRenderer, render_video
from longlive.video.writer import VideoWriter

BLOCKS = 18  # of 3 latents: more than the decoder looks back


@pytest.fixture(scope="module")
def vae() -> WanVAE:
    generator = torch.Generator().manual_seed(0)
    vae = WanVAE(4)
    for name, weight in vae.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        weight.data = 1 + 0.1 * noise if name.endswith("gamma") else noise / max(weight[0].numel() ** 0.5, 3)
    return vae.requires_grad_(False)


def draw_blocks(seed: int, count: int) -> list[torch.Tensor]:
    return list(torch.randn(1, 3 * count, 16, 4, 4, generator=torch.Generator().manual_seed(seed)).split(3, dim=1))


BEGINNING, ENDING = draw_blocks(0, BLOCKS), draw_blocks(1, 2)


class Counting(StreamingDecoder):
    """A decoder that counts what passes it."""

    pushed = caught_up = 0

    def push(self, latents_BFCHW):
        self.pushed += 1
        return super().push(latents_BFCHW)

    def catch_up(self, blocks):
        self.caught_up += bool(blocks)
        super().catch_up(blocks)


def render_file(path: Path, vae: WanVAE, blocks, store: Store | None = None, **settings) -> tuple[bytes, Counting]:
    decoder = Counting(vae)
    with VideoWriter(path, **settings) as writer:
        last = render_video(blocks, VideoRenderer(decoder, writer, store))
    assert not decoder.past.seen
    render_file.last = last
    return path.read_bytes(), decoder


def test_a_video_with_another_ending_decodes_the_ending_alone_and_is_the_same_to_the_byte(tmp_path, vae):
    store = Store(tmp_path / "fragments", memory_bytes=0)
    render_file(tmp_path / "first.mp4", vae, BEGINNING + draw_blocks(2, 2), store)
    edited, decoder = render_file(tmp_path / "second.mp4", vae, BEGINNING + ENDING, store)
    assert (decoder.pushed, decoder.caught_up) == (2, 1)
    last = render_file.last
    again, decoder = render_file(tmp_path / "again.mp4", vae, BEGINNING + ENDING)
    assert decoder.pushed == BLOCKS + 2
    assert edited == again
    assert torch.equal(last, render_file.last)


def test_a_video_that_is_wholly_stored_decodes_nothing(tmp_path, vae):
    first, _ = render_file(tmp_path / "first.mp4", vae, BEGINNING, Store(tmp_path, memory_bytes=0))
    last = render_file.last
    again, decoder = render_file(tmp_path / "again.mp4", vae, BEGINNING, Store(tmp_path, memory_bytes=0))
    assert (decoder.pushed, decoder.caught_up) == (0, 0)
    assert again == first
    assert torch.equal(last, render_file.last)


def test_the_last_frame_is_that_of_the_decoder_without_loss(tmp_path, vae):
    pixels = StreamingDecoder(vae).push(torch.cat(BEGINNING, dim=1))
    render_file(tmp_path / "video.mp4", vae, BEGINNING)
    assert (to_bytes(pixels[:, -1:]).int() - render_file.last.int()).abs().max() <= 1  # another cut of passes


def test_a_shorter_video_shows_its_own_last_frame(tmp_path, vae):
    store = Store(tmp_path / "fragments", memory_bytes=0)
    render_file(tmp_path / "long.mp4", vae, BEGINNING, store)
    short, decoder = render_file(tmp_path / "short.mp4", vae, BEGINNING[:5], store)
    last = render_file.last
    assert decoder.pushed == 1  # of the last block, for its last frame
    assert short == render_file(tmp_path / "again.mp4", vae, BEGINNING[:5])[0]
    assert torch.equal(last, render_file.last)


def test_holes_in_the_store_are_filled(tmp_path, vae):
    store = Store(tmp_path / "fragments", memory_bytes=0)
    whole, _ = render_file(tmp_path / "whole.mp4", vae, BEGINNING, store)
    entries = sorted((tmp_path / "fragments").rglob("*.safetensors"), key=lambda path: path.stat().st_mtime_ns)
    for number in (0, 1, 7, BLOCKS - 1):
        entries[number].unlink()
    mended, decoder = render_file(tmp_path / "mended.mp4", vae, BEGINNING, store)
    assert mended == whole
    assert decoder.pushed == 4


@pytest.mark.parametrize("changed", ["crf", "vae", "fps"])
def test_other_settings_and_other_weights_share_no_fragment(tmp_path, vae, changed):
    store = Store(tmp_path / "fragments", memory_bytes=0)
    render_file(tmp_path / "first.mp4", vae, BEGINNING[:3], store)
    if changed == "vae":
        vae = WanVAE.of_weights({**vae.state_dict(), "conv2.bias": vae.state_dict()["conv2.bias"] + 0.1})
    settings = {"crf": {"crf": 30}, "fps": {"fps": 8}}.get(changed, {})
    assert render_file(tmp_path / "second.mp4", vae, BEGINNING[:3], store, **settings)[1].pushed == 3


def test_an_interrupted_video_plays_and_the_next_one_continues_it(tmp_path, vae):
    store, path = Store(tmp_path / "fragments", memory_bytes=0), tmp_path / "video.mp4"

    def interrupted(decoder):
        with VideoWriter(path) as writer:
            renderer = VideoRenderer(decoder, writer, store)
            for block in BEGINNING[:4]:
                renderer.render_block(block)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted(StreamingDecoder(vae))
    with av.open(path) as video:
        assert sum(1 for _ in video.decode(video=0)) == 4 * 12 - 3
    resumed, decoder = render_file(path, vae, BEGINNING, store)
    assert decoder.pushed == BLOCKS - 4
    assert resumed == render_file(tmp_path / "whole.mp4", vae, BEGINNING)[0]


def test_pixels_are_those_of_a_whole_decode_to_one_step_of_255(tmp_path, vae):
    render_file(tmp_path / "video.mp4", vae, BEGINNING, crf=0)
    whole = to_bytes(StreamingDecoder(vae, at_once=1).push(torch.cat(BEGINNING, dim=1))).int()
    pieces = StreamingDecoder(vae)
    streamed = torch.cat([to_bytes(pieces.push(block)) for block in BEGINNING]).int()
    assert (streamed - whole).abs().max() <= 1


def grow_film(film: Film, vae: WanVAE, store: Store | None = None, **settings) -> VideoRenderer:
    return VideoRenderer(Counting(vae), film, store, **settings)


@pytest.mark.parametrize("beside", [False, True])
def test_after_a_rewind_a_film_is_to_the_byte_what_it_had_been_without_it(tmp_path, vae, beside):
    store = None if beside else Store(tmp_path / "fragments", memory_bytes=0)
    renderer = grow_film(Film.create(tmp_path / "film"), vae, store, beside=beside)
    render_video(BEGINNING[:7], renderer)
    renderer.rewind(7)  # only of what `finish` may have appended
    renderer.render_block(BEGINNING[7])
    renderer.rewind(5)
    last = render_video(ENDING, renderer)
    straight = grow_film(Film.create(tmp_path / "straight"), vae)
    assert torch.equal(last, render_video(BEGINNING[:5] + ENDING, straight))
    assert renderer.writer.path.read_bytes() == straight.writer.path.read_bytes()
    assert [piece.key for piece in renderer.writer.pieces] == [piece.key for piece in straight.writer.pieces]
    assert renderer.num_decoded == 7 + 1 + 2
    renderer.writer.save(tmp_path / "film.mp4", {})
    assert (tmp_path / "film.mp4").read_bytes() == render_file(tmp_path / "v.mp4", vae, BEGINNING[:5] + ENDING)[0]


def test_a_film_goes_on_in_another_process_from_where_its_blocks_agree(tmp_path, vae):
    film = Film.create(tmp_path / "film")
    render_video(BEGINNING[:6], grow_film(film, vae))
    count = film.state.count
    renderer = grow_film(Film.open(tmp_path / "film"), vae)
    blocks = [*BEGINNING[:4], *ENDING]
    shown = renderer.resume(blocks)
    assert (shown, renderer.num_blocks) == (4, 4)
    render_video(blocks[shown:], renderer)
    assert (renderer.num_decoded, renderer.writer.state.count) == (2, count + 2)
    straight = grow_film(Film.create(tmp_path / "straight"), vae)
    render_video(blocks, straight)
    assert renderer.writer.path.read_bytes() == straight.writer.path.read_bytes()
    other = WanVAE.of_weights({**vae.state_dict(), "conv2.bias": vae.state_dict()["conv2.bias"] + 0.1})
    assert grow_film(Film.open(tmp_path / "film"), other).resume(blocks) == 0


@pytest.mark.parametrize("beside", [False, True])
def test_a_block_that_the_disk_refused_may_come_again(tmp_path, vae, monkeypatch, beside):
    film = Film.create(tmp_path / "film")
    renderer = grow_film(film, vae, beside=beside)
    renderer.render_block(BEGINNING[0])
    renderer.rewind(1)  # the thread is idle
    with monkeypatch.context() as patch:
        patch.setattr(film, "append", Mock(side_effect=VideoError("full")))
        with pytest.raises(VideoError):
            render_video(BEGINNING[1:2], renderer)
    render_video(BEGINNING[1:3], renderer)
    straight = grow_film(Film.create(tmp_path / "straight"), vae)
    render_video(BEGINNING[:3], straight)
    assert film.path.read_bytes() == straight.writer.path.read_bytes()
