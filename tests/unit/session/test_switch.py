"""Blends and seeds of a session: which prompt and which noise each block has, its keys, rewinds, and its file."""

from collections.abc import Sequence

import pytest
import tiny
import torch
from random_videos import KERNEL, add_block, make_video
from safetensors import safe_open
from saved_sessions import MODEL, list_content, rewrite

from longlive.errors import ConfigError, SessionError
from longlive.rollout.sampler import Sampler
from longlive.session.boundary import Blend, Boundary, Curve
from longlive.session.prompt import Prompt, mix_prompts
from longlive.session.session import Session
from longlive.session.session_file import load_session, save_session
from longlive.session.switch import Switch

OLD, NEW, LAST = (tiny.prompt(number) for number in range(3))
THIRDS = [mix_prompts((OLD, NEW), (2, 1)), mix_prompts((OLD, NEW), (1, 2)), NEW]


def blend(blocks: int = 2, more: int = 0, curve: Curve = Curve.LINEAR) -> Session:
    """Make `blocks` blocks, a blend of 3 blocks to another prompt, and `more` blocks of it."""
    return make_video(more, make_video(blocks).switched_to(NEW, blend=Blend(3, curve)))


def list_prompts(session: Session) -> list[tuple[int, str]]:
    return [(change.frame, change.prompt.digest) for change in session.list_changes()]


def expect(*changes: tuple[int, Prompt]) -> list[tuple[int, str]]:
    return [(frame, prompt.digest) for frame, prompt in changes]


@pytest.mark.parametrize("more", range(6))
def test_a_blend_changes_the_prompt_at_each_of_its_blocks(more):
    changes = [(0, OLD), *zip((6, 9, 12), THIRDS, strict=True)]
    video = blend(more=more)
    assert list_prompts(video) == expect(*changes[: 2 + more])
    assert video.last_change.prompt.digest == changes[: 2 + more][-1][1].digest
    assert {change.boundary for change in video.list_changes()[1:]} == {Boundary.RECACHE}


def test_the_prompts_of_a_blend_follow_its_curve():
    assert blend(curve=Curve.SPHERICAL).last_change.prompt.digest == (
        mix_prompts((OLD, NEW), (2, 1), Curve.SPHERICAL).digest
    )


def test_the_next_switch_ends_a_blend():
    video = make_video(3, blend(more=1).switched_to(LAST, Boundary.KEEP))
    assert list_prompts(video) == expect((0, OLD), (6, THIRDS[0]), (9, LAST))


def test_a_blend_that_ends_another_begins_with_what_that_had_reached():
    video = make_video(1, blend(more=2).switched_to(LAST, blend=Blend(2)))
    half = mix_prompts((THIRDS[1], LAST), (1, 1))
    assert list_prompts(video) == expect((0, OLD), (6, THIRDS[0]), (9, THIRDS[1]), (12, half), (15, LAST))


def test_of_two_blends_with_no_block_between_the_last_counts():
    video = make_video(2).switched_to(NEW, blend=Blend(3)).switched_to(LAST, blend=Blend(2))
    assert list_prompts(video) == expect((0, OLD), (6, mix_prompts((OLD, LAST), (1, 1))))


@pytest.mark.parametrize("frame", [6, 9, 12, 15, 18])
def test_a_rewind_into_a_blend_continues_it(frame):
    video = blend(more=4)
    back = video.rewound_to(frame)
    assert list_prompts(back) == ([(0, OLD.digest)] if frame == 6 else list_prompts(video)[: frame // 3])
    if frame > 6:
        again = make_video((18 - frame) // 3, back)
        assert again.keys == video.keys


def test_a_blend_before_the_first_frame_only_replaces_the_prompt():
    (switch,) = tiny.session().switched_to(NEW, blend=Blend(3), seed=3).switches
    assert (switch.boundary, switch.prompt, switch.blend, switch.seed) == (Boundary.CUT, NEW, None, 3)


def test_a_blend_over_one_block_is_a_recache():
    video = make_video(2)
    keys = {video.switched_to(NEW, blend=blend).compute_next_key(KERNEL) for blend in (None, Blend(1))}
    assert len(keys) == 1


def test_a_seed_is_that_of_the_noise_from_there_on():
    video = make_video(2)
    assert video.noise_seed == video.seed == 7
    reseeded = make_video(1, video.switched_to(OLD, Boundary.KEEP, seed=0))
    later = make_video(1, reseeded.switched_to(NEW))
    assert [each.noise_seed for each in (reseeded, later, later.rewound_to(6))] == [0, 0, 7]


def test_a_session_s_seed_may_be_given_by_its_first_prompt():
    given = tiny.session(seed=3)
    assert torch.equal(
        Sampler(MODEL).sample(tiny.session().switched_to(OLD, seed=3), 2).latents(),
        Sampler(MODEL).sample(given, 2).latents(),
    )


def test_another_seed_changes_the_blocks_after_it_only():
    video = Sampler(MODEL).sample(tiny.session(), 3)
    back = video.rewound_to(6).switched_to(OLD, Boundary.KEEP, seed=8)
    again = Sampler(MODEL).sample(back, 1)
    assert torch.equal(again.frames(0, 6), video.frames(0, 6))
    assert not torch.equal(again.frames(6, 3), video.frames(6, 3))
    same = Sampler(MODEL).sample(video.rewound_to(6).switched_to(OLD, Boundary.KEEP, seed=7), 1)
    assert torch.equal(same.latents(), video.latents())


def test_keys_change_with_seed_and_blend():
    video = make_video(3)
    switched: Sequence[Session] = [
        video.switched_to(NEW),
        *(video.switched_to(NEW, seed=seed) for seed in (0, 7, 8)),
        *(video.switched_to(NEW, blend=Blend(blocks, curve)) for blocks in (2, 3) for curve in Curve),
        video.switched_to(NEW, blend=Blend(2), seed=7),
    ]
    assert len({each.compute_next_key(KERNEL) for each in switched}) == len(switched)
    longer = [make_video(4, each) for each in switched]
    assert len({each.keys[-1] for each in longer}) == len(longer)
    assert len({each.rekeyed().keys[-1] for each in longer}) == len(longer)


def test_a_step_of_a_blend_has_the_key_of_a_switch_to_its_prompt():
    """So a store holds no block twice, and earlier releases know the keys."""
    steps = make_video(2)
    for number, prompt in enumerate(THIRDS):
        steps = add_block(steps.switched_to(prompt), number)
    assert steps.keys == blend(more=3).keys


def test_a_blend_makes_the_latents_of_switches_to_its_prompts_and_a_seed_holds_beyond_the_next_switch():
    begun = Sampler(MODEL).sample(tiny.session(), 3)
    short = Sampler(MODEL).sample(begun.switched_to(NEW, blend=Blend(3), seed=8), 3)
    long = begun
    for prompt in THIRDS:
        long = Sampler(MODEL).sample(long.switched_to(prompt, seed=8), 1)
    assert torch.equal(short.latents(), long.latents())
    held, given = (Sampler(MODEL).sample(short.switched_to(LAST, seed=seed), 1).latents() for seed in (None, 8))
    assert torch.equal(held, given)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(ConfigError, match=f"seed is {seed}; it must be from 0 to 18446744073709551615"):
        make_video(1).switched_to(NEW, seed=seed)


@pytest.mark.parametrize("blocks", [0, -1, 1001])
def test_a_blend_out_of_range_is_refused(blocks):
    with pytest.raises(ConfigError, match=f"the blend takes {blocks} blocks; use a number from 1 to 1000"):
        Blend(blocks)


def test_a_blend_with_another_boundary_is_a_wrong_call():
    with pytest.raises(ValueError, match="a blend recaches at each of its blocks; it cannot have the boundary keep"):
        make_video(1).switched_to(NEW, Boundary.KEEP, blend=Blend(3))
    with pytest.raises(ValueError, match="a blend, and only a blend, begins with the prompt before it"):
        Switch(3, Boundary.RECACHE, NEW, blend=Blend(3))


def test_a_report_shows_blend_and_seed():
    video = make_video(3, blend(curve=Curve.SPHERICAL)).switched_to(LAST, Boundary.KEEP, seed=8)
    assert [line.split()[4:-2] for line in video.describe().splitlines()[2:]] == [
        ["start"],
        ["blend", "3b", "spherical"],
        ["keep", "seed", "8"],
    ]
    assert tiny.session().switched_to(NEW, seed=8).describe().split()[-5:] == ["start", "seed", "8", "prompt", "1"]


@pytest.mark.parametrize("more", [0, 1, 2, 3])
def test_law_3_a_saved_blend_continues_bit_for_bit(tmp_path, more):
    """Saved at each of its blocks, one that begins with the mix of another blend, under a new seed."""
    video = Sampler(MODEL).sample(tiny.session(), 2)
    video = Sampler(MODEL).sample(video.switched_to(NEW, blend=Blend(3, Curve.SPHERICAL)), 1)
    video = Sampler(MODEL).sample(video.switched_to(LAST, blend=Blend(3), seed=2**64 - 1), more)
    save_session(video, tmp_path / "video")
    loaded = load_session(tmp_path / "video")
    assert list_content(loaded) == list_content(video)
    ahead, behind = (Sampler(MODEL).sample(each, 4 - more) for each in (video, loaded))
    assert list_content(behind) == list_content(ahead)


def test_a_file_names_a_later_version_only_where_it_holds_what_earlier_releases_do_not_know(tmp_path):
    sessions = {"1": blend().rewound_to(6), "2": blend(), "2 ": make_video(1).switched_to(OLD, Boundary.KEEP, seed=0)}
    for version, session in sessions.items():
        save_session(session, tmp_path / version)
        with safe_open(tmp_path / version, "pt") as file:
            assert file.metadata()["version"] == version.strip()


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"seed": -1}, "seed is -1"),
        ({"seed": "7"}, "seed is '7'; it must be a whole number"),
        ({"blend": 3}, "blend is 3; it must be an object"),
        ({"blend": {"blocks": 0, "curve": "linear"}}, "blocks is 0"),
        ({"blend": {"blocks": 3, "curve": "round"}}, "curve is 'round'; use linear or spherical"),
        ({"blend": {"blocks": 3, "curve": "linear"}}, "it has no before"),
        ({"boundary": "keep"}, "it cannot have the boundary keep"),
    ],
    ids=str,
)
def test_a_forged_blend_or_seed_is_refused(tmp_path, fields, problem):
    path = tmp_path / "video.safetensors"
    save_session(blend(), path)
    before = {"text": "", "rows": 4, "prompt": 0}
    first = {"frame": 0, "boundary": "discard", **before}
    good = {**before, "prompt": 1, "frame": 6, "boundary": "recache"}
    good["blend"] = {"blocks": 3, "curve": "linear", "before": before}
    rewrite(path, version="2", switches=[first, good])
    assert list_prompts(load_session(path)) == list_prompts(blend())
    rewrite(path, version="2", switches=[first, good | fields])
    with pytest.raises(SessionError, match=f"damaged.*{problem}"):
        load_session(path)
