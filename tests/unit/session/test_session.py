"""A session is a value: every change returns a new one, and its keys hash all that determines a block."""

import dataclasses
from dataclasses import replace

import pytest
import tiny
import torch

from longlive.config import Positions, RolloutConfig
from longlive.errors import ConditioningError, ConfigError, SessionError
from longlive.session.boundary import Boundary
from longlive.session.session import Prompt, Session, Switch

KERNEL = "cpu sdpa"


def block(session: Session, number: int) -> torch.Tensor:
    return torch.randn(session.block_shape, generator=torch.Generator().manual_seed(number))


def add_block(session: Session, number: int) -> Session:
    return session.extended_by(block(session, number), session.compute_next_key(KERNEL))


def make_video(blocks: int, session: Session | None = None) -> Session:
    """Return a video of random latents."""
    session = session or tiny.session()
    for number in range(blocks):
        session = add_block(session, number)
    return session


def list_facts(session: Session) -> tuple:
    """List the content of a session, tensors as copies."""
    return (
        *(
            getattr(session, field.name)
            for field in dataclasses.fields(session)
            if field.name not in ("blocks", "switches")
        ),
        [block.clone().tolist() for block in session.blocks],
        [(s.frame, s.boundary, s.prompt.text, s.prompt.rows, s.prompt.embedding.tolist()) for s in session.switches],
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


def test_a_block_of_another_shape_is_our_own_mistake():
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


@pytest.mark.parametrize("shape", [(2, 4, 10), (0, 4, 10), (4, 10), (1, 1, 4, 10), (1, 0, 10), (1, 4, 0)])
def test_a_batch_of_prompts_is_refused(shape):
    with pytest.raises(ConditioningError, match="a session takes one prompt"):
        Prompt.of(torch.zeros(shape))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_prompt_of_what_is_no_number_is_refused(value):
    embedding = torch.ones(1, 4, 10)
    embedding[0, 2, 3] = value
    with pytest.raises(ConditioningError, match=r"holds NaN or infinity.*load the text encoder again"):
        Prompt.of(embedding)
    with pytest.raises(ConditioningError, match=r"torch.int64.* or whole numbers"):
        Prompt.of(torch.ones(1, 4, 10, dtype=torch.int64))


@pytest.mark.parametrize("used", [0, 1, 3, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zero_rows_are_trimmed_and_padded_back_exactly(used, dtype):
    embedding = torch.zeros(1, 6, 10, dtype=dtype)
    embedding[:, :used] = torch.randn(1, used, 10)
    if used == 3:
        embedding[:, 1] = 0  # a zero row within stays
    prompt = Prompt.of(embedding)
    assert prompt.embedding.shape == (1, max(1, used), 10)
    assert prompt.pad().dtype is dtype
    assert torch.equal(prompt.pad(), embedding)


def test_a_prompt_is_a_copy_that_later_writes_cannot_reach():
    embedding = torch.randn(1, 4, 10)
    prompt = Prompt.of(embedding)
    kept, digest = embedding.clone(), prompt.digest
    embedding.zero_()
    assert torch.equal(prompt.pad(), kept)
    assert Prompt.of(kept).digest == digest


def test_a_prompt_is_known_by_numbers_and_rows_and_not_by_words():
    numbers = torch.randn(1, 4, 10)
    digest = Prompt.of(numbers, "a fox").digest
    assert Prompt.of(numbers, "a wolf").digest == digest
    padded = torch.nn.functional.pad(numbers, (0, 0, 0, 1))
    assert Prompt.of(padded).digest != digest  # zero rows are attended too
    assert Prompt.of(numbers.double()).digest != digest
    assert Prompt.of(numbers + 1e-6).digest != digest


CHANGES = [
    {"model": "other"},
    {"height": 32},
    {"width": 48},
    {"seed": 8},
    {"seed": 2**64 - 1},
    {"dtype": torch.bfloat16},
    {"channels": 48},
    {"config": RolloutConfig(window=15)},
    {"config": RolloutConfig(sink=0)},
    {"config": RolloutConfig(block=1)},
    {"config": RolloutConfig(steps=(1000, 500))},
    {"config": RolloutConfig(shift=8.0)},
    {"config": RolloutConfig(context_noise=5.0)},
    {"config": RolloutConfig(positions=Positions.UNBOUNDED)},
]


def test_every_setting_has_a_change_among_those_tried():
    tried = {name for change in CHANGES for name in change}
    state = {"switches", "blocks", "keys"}
    assert tried == {field.name for field in dataclasses.fields(Session)} - state
    released = RolloutConfig().as_dict()
    changed = [c["config"].as_dict() for c in CHANGES if "config" in c]
    assert {name for config in changed for name, value in config.items() if value != released[name]} == set(released)


def test_keys_change_with_the_kernel_that_rounds():
    assert tiny.session().compute_next_key(KERNEL) != tiny.session().compute_next_key("cuda flash3")


def test_keys_change_with_every_setting():
    keys = [replace(tiny.session(), **change).compute_next_key(KERNEL) for change in CHANGES]
    assert len({tiny.session().compute_next_key(KERNEL), *keys}) == len(CHANGES) + 1


def test_keys_change_with_the_prompt_the_boundary_and_the_moment():
    video = make_video(3)
    continued = [
        video,
        *(video.switched_to(tiny.prompt(1), boundary) for boundary in Boundary),
        video.switched_to(tiny.prompt(2)),
        add_block(make_video(2).switched_to(tiny.prompt(1)), 2),
        make_video(3, tiny.session().switched_to(tiny.prompt(1))),
        make_video(2),
        make_video(4),
    ]
    assert len({session.compute_next_key(KERNEL) for session in continued}) == len(continued)


def test_a_key_tells_all_that_came_before():
    """Two videos that differ in an early prompt only never share a later key."""
    other = make_video(1).switched_to(tiny.prompt(1), Boundary.KEEP)
    assert not set(make_video(4, other).keys[1:]) & set(make_video(6).keys)


def test_keys_change_with_nothing_else():
    """The words of a prompt, the way a session came to be, unused detours: all the same key."""
    video = make_video(3).switched_to(tiny.prompt(1))
    renamed = Prompt(tiny.prompt(1).embedding, tiny.prompt(1).rows, "other words")
    same = [
        make_video(3).switched_to(renamed),
        make_video(3).switched_to(tiny.prompt(2), Boundary.CUT).switched_to(tiny.prompt(1)),
        make_video(5).rewound_to(9).switched_to(tiny.prompt(1)),
        make_video(3, tiny.session(RolloutConfig(steps=[1000, 750, 500, 250], positions="absolute"))).switched_to(
            renamed
        ),
        replace(video, blocks=tuple(block.clone() for block in video.blocks)),
    ]
    assert {session.compute_next_key(KERNEL) for session in same} == {video.compute_next_key(KERNEL)}


def test_equal_settings_have_equal_keys_whether_written_as_5_or_5_0():
    whole, decimal = RolloutConfig(shift=5, context_noise=0), RolloutConfig(shift=5.0, context_noise=0.0)
    assert whole == decimal
    assert tiny.session(whole).compute_next_key(KERNEL) == tiny.session(decimal).compute_next_key(KERNEL)


def test_keys_are_the_same_in_every_process_and_release():
    """A golden key: it changes only together with KEY_VERSION, or stores would answer with other latents."""
    prompt = Prompt.of(torch.arange(6.0).view(1, 2, 3))
    video = Session(
        model="tiny", config=RolloutConfig(), height=16, width=32, seed=7, dtype=torch.float32, channels=16,
        switches=(Switch(0, Boundary.CUT, prompt),),
    )  # fmt: skip
    assert video.compute_next_key(KERNEL) == "9c879162497113c3cdfcf1547385a524a1fa7dd60b0b17d2bb7d78a4e1cc2bd2"


def test_a_session_continues_its_own_past_and_no_other():
    video = make_video(3)
    later = make_video(2, video.switched_to(tiny.prompt(1)))
    assert later.continues(video.trace())
    assert later.continues(later.trace())
    assert later.continues(tiny.session().trace())
    assert not video.continues(later.trace())
    assert not make_video(2, video.switched_to(tiny.prompt(2))).continues(later.trace())
    assert not later.continues(make_video(3, tiny.session(seed=8)).trace())
    assert not later.continues(tiny.session(seed=8).trace())


def test_a_session_does_not_continue_latents_that_have_its_keys_and_came_from_elsewhere():
    video = make_video(3)
    loaded = replace(video, blocks=tuple(block.clone() for block in video.blocks))
    assert loaded.keys == video.keys
    assert not loaded.continues(video.trace())


def test_keys_of_a_video_from_outside_hash_what_it_holds():
    video = make_video(3, make_video(2).switched_to(tiny.prompt(1)))
    copy = replace(video, blocks=tuple(block.clone() for block in video.blocks), keys=("any",) * 5).rekeyed()
    assert copy.keys == video.rekeyed().keys
    assert not set(copy.keys) & set(video.keys)
    assert copy.compute_next_key(KERNEL) != video.compute_next_key(KERNEL)
    assert copy.rewound_to(6).keys == video.rewound_to(6).rekeyed().keys


def test_keys_of_a_video_from_outside_change_with_all_that_it_holds():
    video = make_video(3, make_video(2).switched_to(tiny.prompt(1)))
    start, switch = video.switches
    first, *others = video.blocks
    variants = [
        video,
        replace(video, blocks=(first + 1, *others)),
        replace(video, switches=(replace(start, prompt=tiny.prompt(2)), switch)),
        replace(video, switches=(start, replace(switch, prompt=tiny.prompt(2)))),
        replace(video, switches=(start, replace(switch, boundary=Boundary.KEEP))),
        replace(video, switches=(start, replace(switch, frame=9))),
        replace(video, switches=(start,)),
        *(replace(video, **change) for change in CHANGES if "channels" not in change),
    ]
    assert len({variant.rekeyed().keys[-1] for variant in variants}) == len(variants)


def test_no_message_moves_the_cursor_of_a_terminal():
    prompt = Prompt(tiny.prompt(1).embedding, 4, "a fox\x1b[2J\nruns")
    assert str(prompt) == r"a fox\x1b[2J\nruns"


def test_a_report_names_length_size_settings_and_switches():
    video = make_video(4).switched_to(tiny.prompt(1), Boundary.RENEW)
    report = video.describe()
    for part in ("2.81 s", "4 blocks", "12 frames", "45 pixel frames", "32 x 16, seed 7", "window 12 with sink 3"):
        assert part in report
    first, second = report.splitlines()[-2:]
    assert first.split() == ["0.00", "s", "frame", "0", "start", "prompt", "0"]
    assert second.split() == ["3.00", "s", "frame", "12", "renew", "prompt", "1"]


def test_a_prompt_without_words_is_named_by_its_digest():
    prompt = Prompt.of(torch.ones(1, 2, 10))
    assert str(prompt) == f"(prompt {prompt.digest[:8]})"
