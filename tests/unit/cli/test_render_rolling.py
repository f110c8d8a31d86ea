"""`longlive render` of rolling videos: the kind that is asked for or that a file's name tells, ends, interrupts."""

import contextlib
import shutil

import pytest
import tiny
import torch
from render_runs import STORY, count_pixel_frames

from longlive.cli.main import main, make_parser
from longlive.cli.video_options import choose_numbers, open_session
from longlive.config import Positions, RolloutConfig, RolloutKind
from longlive.errors import ConfigError
from longlive.rollout.rollout import PassKind
from longlive.rollout.sampler import Sampler, count_timeline_passes
from longlive.session.boundary import Boundary
from longlive.session.session_file import load_session
from longlive.session.timeline import Segment, plan_ends
from longlive.video.render import VideoRenderer

ROLLING = "--kind", "rolling"
FOUR_LEVELS = (1000, 750, 500, 250)
LONGER = "9f | a red fox\n9f | the red fox runs\n"


class Bar(contextlib.nullcontext):
    """Counts the steps of a progress bar, which has none where nobody looks."""

    def __init__(self, total: int) -> None:
        super().__init__(self)
        self.total, self.count = total, 0

    def update(self, steps: int) -> None:
        self.count += steps


@pytest.fixture
def choose(tmp_path):
    """Choose the numbers of a new video of a weights file by its options."""

    def choose(name: str, *more: str) -> RolloutConfig:
        command = ["render", "story.txt", "--weights", name, "--pipeline", str(tmp_path), "-o", "story.mp4", *more]
        return choose_numbers(make_parser().parse_args(command))

    return choose


@pytest.mark.parametrize(
    ("name", "more", "config"),
    [
        ("longlive_base.pt", (), RolloutConfig()),
        ("longlive_base.pt", ROLLING, RolloutConfig.roll()),
        ("rolling_forcing_dmd.pt", (), RolloutConfig.roll()),
        ("rolling_forcing_dmd.pt", ("--kind", "block-wise"), RolloutConfig()),
        ("longvideo.pt", (), RolloutConfig.roll(steps=FOUR_LEVELS)),
        ("longvideo.pt", ROLLING, RolloutConfig.roll(steps=FOUR_LEVELS)),
        ("longvideo.pt", ("--steps", "900", "500"), RolloutConfig.roll(steps=(900, 500))),
        ("x.pt", (*ROLLING, "--window", "24", "--shift", "3"), RolloutConfig.roll(window=24, shift=3.0)),
        ("x.pt", ("--positions", "unbounded", "--sink", "6"), RolloutConfig(positions=Positions.UNBOUNDED, sink=6)),
    ],
)
def test_a_kind_has_its_released_numbers_but_for_those_given(choose, name, more, config, caplog):
    assert choose(name, *more) == config
    is_told = config.kind is RolloutKind.ROLLING and ROLLING[0] not in more
    assert [message.split(",")[0] for message in caplog.messages] == [
        f"the name of {name} says that its weights were trained for rolling videos with steps "
        + ("1000 750 500 250" if name == "longvideo.pt" else "1000 800 600 400 200")
    ] * is_told


def test_numbers_that_no_rolling_video_has_are_refused(choose):
    with pytest.raises(ConfigError, match="block is 6 and sink is 3; a rolling video has 3 frames in each"):
        choose("x.pt", *ROLLING, "--block", "6")
    with pytest.raises(ConfigError, match="positions are absolute; a rolling video has unbounded ones"):
        choose("x.pt", *ROLLING, "--positions", "absolute")


def test_weights_have_another_identity_under_the_name_that_prefers_their_average(tmp_path):
    identities = []
    for name in ("model.pt", "rolling_forcing_dmd.pt"):
        torch.save({"generator": {"x": torch.zeros(1)}, "generator_ema": {"x": torch.ones(1)}}, tmp_path / name)
        command = ["render", "story.txt", "--pipeline", str(tmp_path), "-o", "story.mp4", *ROLLING]
        options = make_parser().parse_args([*command, "--weights", str(tmp_path / name), "--device", "cpu"])
        identities.append(open_session(options).model)
    assert identities[0] != identities[1]
    options.ema = True
    assert open_session(options).model == identities[1]


def test_a_rolling_video_is_finished_by_itself(render, tmp_path, weights, caplog, capsys):
    named = shutil.copy(weights, tmp_path / "rolling_forcing_tiny.safetensors")
    assert render(STORY, "named.mp4", "--weights", str(named)) == 0
    assert "the licence of Rolling Forcing's weights allows academic use only" in caplog.text
    assert count_pixel_frames(tmp_path / "named.mp4") == 4 * 12 - 3
    session = load_session(tmp_path / "named.session.safetensors")
    assert (session.config, session.in_flight, session.ends) == (RolloutConfig.roll(), None, (12,))
    capsys.readouterr()
    assert main(["info", str(tmp_path / "named.session.safetensors")]) == 0
    assert "4 blocks, 12 frames, 45 pixel frames, 2.81 s, finished at frame 12\n" in capsys.readouterr().out


def test_an_interrupted_video_keeps_its_blocks_in_flight_and_goes_on_to_the_same_file(
    render, tmp_path, monkeypatch, caplog, capsys
):
    caplog.set_level("INFO")
    assert render(LONGER, "whole.mp4", *ROLLING, "--store", str(tmp_path / "other")) == 0
    render_block = VideoRenderer.render_block

    def interrupt(self, latents):
        if self.num_blocks == 4:
            raise KeyboardInterrupt
        render_block(self, latents)

    with monkeypatch.context() as patch:
        patch.setattr(VideoRenderer, "render_block", interrupt)
        assert render(LONGER, "story.mp4", *ROLLING) == 130
    path = tmp_path / "story.session.safetensors"
    assert f"session: {path}, 15 frames, 1 block in flight" in caplog.text
    kept = shutil.copy(path, tmp_path / "kept.safetensors")
    capsys.readouterr()
    assert main(["info", str(kept)]) == 0
    assert "5 blocks, 15 frames, 57 pixel frames, 3.56 s, 1 block in flight\n" in capsys.readouterr().out

    computed = []
    roll = Sampler._compute
    monkeypatch.setattr(Sampler, "_compute", lambda *given: computed.append(given) or roll(*given))
    bars = []
    monkeypatch.setattr("longlive.cli.render.tqdm", lambda **given: bars.append(Bar(given["total"])) or bars[-1])
    assert render(LONGER, "story.mp4", *ROLLING) == 0
    assert [(bar.total, bar.count) for bar in bars] == [(10, 10)]
    assert len(computed) == 1  # the last of ten passes; those before are in the store
    assert (tmp_path / "story.mp4").read_bytes() == (tmp_path / "whole.mp4").read_bytes()

    more = "--session", str(kept), "--store", str(tmp_path / "another")
    assert render("3f keep | the red fox runs\n", "again.mp4", *more) == 0
    assert "1 block of it in flight, which the next prompt finishes" in caplog.text
    assert load_session(tmp_path / "again.session.safetensors").ends == (18,)
    assert render("3f | the snow\n", "other.mp4", *more, "--kind", "block-wise") == 1
    assert "kept.safetensors is a rolling video, not a block-wise one; leave out --kind, or begin" in caplog.text


def test_a_script_that_ends_before_the_blocks_in_flight_is_refused(render, tmp_path, monkeypatch, caplog):
    with monkeypatch.context() as patch:
        patch.setattr("longlive.cli.render.plan_ends", lambda segments, blocks: [None] * len(segments))
        assert render("3f | a red fox\n", "open.mp4", *ROLLING) == 0
    more = "--session", str(tmp_path / "open.session.safetensors")
    monkeypatch.setattr("longlive.cli.render.load_causal_model", None)  # before it is needed
    assert render("3b | the snow\n", "more.mp4", *more) == 1
    assert "the video would end with 4 blocks, but 5 have begun; make it at least 4 blocks longer" in caplog.text
    assert not (tmp_path / "more.mp4").exists()


@pytest.mark.parametrize("config", [RolloutConfig(), RolloutConfig.roll()], ids=lambda config: config.kind.value)
def test_the_progress_bar_ends_with_the_last_denoising_pass(config):
    segments = [Segment("", 2), Segment("", 3, Boundary.CUT), Segment("", 1), Segment("", 1, Boundary.CUT)]
    model, prompts = tiny.model(), [*map(tiny.prompt, range(4))]
    start = Sampler(model).sample(tiny.session(config), 1)
    for begun in (tiny.session(config), start):
        made = []
        sampler = Sampler(model, watch=lambda done, made=made: made.append(done.kind is PassKind.DENOISE))
        video = begun
        for segment, prompt, end in zip(segments, prompts, plan_ends(segments, len(video.blocks)), strict=True):
            video = video.switched_to(prompt, segment.boundary)
            *_, video = sampler.extend(video, segment.blocks, end)
        assert sum(made) == count_timeline_passes(begun, segments)
