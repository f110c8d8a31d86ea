"""The keys of a session: each hashes all that determines a block."""

import dataclasses
from dataclasses import replace

import tiny
import torch
from random_videos import KERNEL, add_block, make_video

from longlive.config import Positions, RolloutConfig
from longlive.session.boundary import Boundary
from longlive.session.prompt import Prompt
from longlive.session.session import Session
from longlive.session.switch import Switch

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
    {"config": RolloutConfig.roll()},
]


def test_every_setting_has_a_change_among_those_tried():
    tried = {name for change in CHANGES for name in change}
    state = {"switches", "blocks", "keys", "in_flight", "ends"}
    assert tried == {field.name for field in dataclasses.fields(Session)} - state
    changed = [change["config"] for change in CHANGES if "config" in change]
    settings = {field.name for field in dataclasses.fields(RolloutConfig)}
    released = RolloutConfig()
    assert {name for name in settings for each in changed if getattr(each, name) != getattr(released, name)} == settings


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


def test_a_key_depends_on_all_earlier_blocks():
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
