"""A session is a value: every change returns a new one."""

import dataclasses
from dataclasses import replace

import pytest
import tiny
import torch
from random_videos import KERNEL, add_block, make_video

from longlive.config import RolloutConfig
from longlive.errors import ConfigError, SessionError
from longlive.rollout.sampler import Sampler
from longlive.session.boundary import Boundary
from longlive.session.session import Session


def list_facts(session: Session) -> tuple:
    """List the content of a session, tensors as copies."""
    return (
        *(
            getattr(session, field.name)
            for field in dataclasses.fields(session)
            if field.name not in ("blocks", "switches")
        ),
        [block.clone().tolist() for block in session.blocks],
        [(str(s), s.frame, s.prompt.text, s.prompt.rows, s.prompt.embedding.tolist()) for s in session.switches],
    )


def test_nothing_that_is_done_with_a_session_changes_it():
    video = make_video(3).switched_to(tiny.prompt(1))
    before = list_facts(video)
    add_block(video, 9).switched_to(tiny.prompt(2), Boundary.CUT)
    video.switched_to(tiny.prompt(3), Boundary.KEEP)
    video.rewound_to(3)
    video.latents().zero_()
    video.frames(1, 4).zero_()
    video.describe()
    assert list_facts(video) == before


def test_no_field_of_a_session_can_be_set():
    with pytest.raises(dataclasses.FrozenInstanceError):
        tiny.session().seed = 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        tiny.prompt(0).rows = 3


def test_latents_are_shared_by_a_session_and_those_that_continue_it():
    video = make_video(3)
    next_one = add_block(video, 3)
    assert all(a is b for a, b in zip(video.blocks, next_one.blocks, strict=False))
    assert next_one.keys[:3] == video.keys


def test_a_switch_before_the_first_frame_replaces_the_prompt():
    video = tiny.session().switched_to(tiny.prompt(1), Boundary.KEEP).switched_to(tiny.prompt(2), Boundary.RENEW)
    (switch,) = video.switches
    assert (switch.frame, switch.boundary, str(switch.prompt)) == (0, Boundary.CUT, "prompt 2")
    assert video.compute_next_key(KERNEL) == tiny.session().switched_to(tiny.prompt(2)).compute_next_key(KERNEL)


def test_of_two_switches_with_no_block_between_the_last_counts():
    video = make_video(2)
    twice = video.switched_to(tiny.prompt(1), Boundary.CUT).switched_to(tiny.prompt(2), Boundary.KEEP)
    once = video.switched_to(tiny.prompt(2), Boundary.KEEP)
    assert [(switch.frame, switch.boundary) for switch in twice.switches] == [(0, Boundary.CUT), (6, Boundary.KEEP)]
    assert twice.compute_next_key(KERNEL) == once.compute_next_key(KERNEL)
    assert twice.origin == once.origin == 0


def test_lengths_are_counted_in_frames_pixels_and_seconds():
    video = make_video(5)
    assert (video.num_frames, video.pixel_frames, video.seconds) == (15, 57, 57 / 16)
    assert (tiny.session().num_frames, tiny.session().pixel_frames, tiny.session().seconds) == (0, 0, 0)
    assert video.block_shape == (1, 3, 16, 2, 4)


def test_positions_count_from_the_last_cut():
    video = make_video(2).switched_to(tiny.prompt(1), Boundary.CUT)
    assert video.origin == 6
    later = make_video(2, video).switched_to(tiny.prompt(2), Boundary.RENEW)
    assert later.origin == 6
    assert later.rewound_to(6).origin == 0


@pytest.mark.parametrize(("start", "count"), [(0, 12), (0, 1), (2, 2), (3, 3), (4, 7), (11, 1)])
def test_any_run_of_frames_can_be_had(start, count):
    video = make_video(4)
    whole = torch.cat(video.blocks, 1)
    assert torch.equal(video.latents(), whole)
    assert torch.equal(video.frames(start, count), whole[:, start : start + count])


def test_a_video_without_frames_has_empty_latents():
    assert tiny.session().latents().shape == (1, 0, 16, 2, 4)


def test_a_block_of_another_shape_fails_an_assertion():
    with pytest.raises(AssertionError, match=r"\[1, 2, 16, 2, 4\]|\(1, 3, 16, 2, 4\)"):
        tiny.session().extended_by(torch.zeros(1, 2, 16, 2, 4), "key")


def test_blocks_are_kept_on_the_cpu_in_the_session_s_dtype_without_a_graph():
    video = replace(tiny.session(), dtype=torch.bfloat16)
    (kept,) = video.extended_by(torch.ones(video.block_shape, requires_grad=True), "key").blocks
    assert (kept.device.type, kept.dtype, kept.requires_grad) == ("cpu", torch.bfloat16, False)


def test_rewinding_drops_later_blocks_keys_and_prompts():
    video = make_video(2).switched_to(tiny.prompt(1))
    video = make_video(2, video).switched_to(tiny.prompt(2))
    back = video.rewound_to(6)
    assert list_facts(back) == list_facts(make_video(2))
    assert back.compute_next_key(KERNEL) == make_video(2).compute_next_key(KERNEL)
    assert [switch.frame for switch in video.rewound_to(9).switches] == [0, 6]
    assert list_facts(video.rewound_to(0)) == list_facts(tiny.session())


@pytest.mark.parametrize(("frame", "fitting"), [(4, 3), (-1, 0), (-3, 0), (13, 12), (15, 12), (3000, 12)])
def test_rewinding_into_a_block_or_past_an_end_is_refused(frame, fitting):
    message = f"cannot rewind to frame {frame}: the video has 12 frames in blocks of 3; use .*for example {fitting}$"
    with pytest.raises(SessionError, match=message):
        make_video(4).rewound_to(frame)


@pytest.mark.parametrize("axis", ["height", "width"])
@pytest.mark.parametrize(
    ("size", "fitting"), [(0, "16 or 32"), (-16, "16 or 32"), (8, "16 or 32"), (17, "16 or 32"), (479, "464 or 480")]
)
def test_sizes_that_hold_no_whole_tokens_are_refused(axis, size, fitting):
    message = f"{axis} is {size}; it must be a positive multiple of 16, for example {fitting}"
    with pytest.raises(ConfigError, match=message):
        replace(tiny.session(), **{axis: size})


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_that_would_be_another_ones_is_refused(seed):
    with pytest.raises(ConfigError, match=f"seed is {seed}; it must be from 0 to 18446744073709551615"):
        tiny.session(seed=seed)


def test_a_report_of_a_rolling_video_names_its_ends_and_the_blocks_in_flight():
    video, sampler = tiny.session(RolloutConfig.roll()), Sampler(tiny.model())
    *_, ended = sampler.extend(video, 2, 2)
    assert ended.describe().splitlines()[0].endswith(" s, finished at frame 6")
    going_on = sampler.sample(ended, 1)
    assert going_on.describe().splitlines()[0].endswith(" s, 4 blocks in flight, finished at frame 6")
    assert going_on.describe().splitlines()[1].endswith(", unbounded positions, rolling")


def test_a_report_names_length_size_settings_and_switches():
    video = make_video(4).switched_to(tiny.prompt(1), Boundary.RENEW)
    report = video.describe()
    for part in (
        "2.81 s",
        "4 blocks",
        "12 frames",
        "45 pixel frames",
        "32 x 16, seed 7",
        "window 12 with sink 3",
        "shift 5, context noise 0, ",
    ):
        assert part in report
    first, second = report.splitlines()[-2:]
    assert first.split() == ["0.00", "s", "frame", "0", "start", "prompt", "0"]
    assert second.split() == ["3.00", "s", "frame", "12", "renew", "prompt", "1"]
