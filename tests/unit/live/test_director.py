"""A directed video is the video of its script, bit for bit, whatever was said, taken back and refused on the way."""

import gc
import json
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from directed import BLOCK_SECONDS, Stage, do, encode, render_script, say, start_session

from longlive.config import TABLE_FRAMES, RolloutConfig
from longlive.errors import ConditioningError, MessageError, SessionError
from longlive.evaluation.drift_log import DriftLog
from longlive.live.director import Director
from longlive.live.inbox import Inbox
from longlive.live.messages import read_message
from longlive.live.pace import Pace, Status
from longlive.live.take import read_take
from longlive.rollout.kv_cache import WindowKVCache
from longlive.rollout.rollout import Pass, PassKind
from longlive.rollout.sampler import Sampler
from longlive.session.boundary import Blend, Boundary, Curve
from longlive.video.fragments import Fragment

# What is said when the video has so many blocks: every boundary, two blends (one of them cut short), a rewind into a
# blend and one to a switch, seeds with and without a prompt, a prompt for later, a pause.
STORY = {
    -1: [say("a")],
    2: [say("b", boundary="blend", blend=3)],
    4: [do("rewind", to=3), do("seed", seed=5)],
    6: [say("c", boundary="keep"), do("pause"), say("d", boundary="cut", seed=9), do("resume")],
    8: [say("e", boundary="blend", blend=4, curve="spherical"), say("late", at=12 * BLOCK_SECONDS)],
    10: [say("f", boundary="renew")],
    11: [do("rewind", to=10), say("g")],
    14: [do("rewind", to=12)],
    15: [do("stop", at=16 * BLOCK_SECONDS)],
}
SCRIPT = """\
2b | a
1b blend 3b | b
3b blend 2b seed 5 | b
2b cut seed 9 | d
2b blend 4b spherical | e
2b | g
4b | late
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """The story, directed, as its stage left it."""
    with Stage(tmp_path_factory.mktemp("told")) as stage:
        assert stage.run(STORY) is Status.STOPPED
    return stage


def test_what_is_said_becomes_the_script_with_rewinds_resolved(told):
    assert told.director.script == SCRIPT
    assert (told.take.folder / "script.txt").read_text() == SCRIPT


def test_the_script_makes_the_same_latents_and_the_same_film(told, tmp_path):
    session, film = render_script(tmp_path / "again", SCRIPT)
    assert torch.equal(session.latents(), told.director.session.latents())
    assert session.keys == told.director.session.keys
    assert film == told.film_bytes


@pytest.mark.parametrize(
    ("at", "longest", "status", "blocks"),
    [
        (None, None, Status.STOPPED, 19),  # 15 blocks, and the 4 in flight
        (16, None, Status.STOPPED, 19),  # as 19 have begun
        (24, None, Status.STOPPED, 24),
        (None, 15, Status.COMPLETE, 15),
    ],
)
def test_a_rolling_video_ends_with_what_is_in_flight_and_is_that_of_its_script(at, longest, status, blocks, tmp_path):
    session = start_session(RolloutConfig.roll())
    stop = do("stop", **({"at": at * BLOCK_SECONDS} if at else {}))
    with Stage(tmp_path, session) as stage:
        pace = Pace(is_watched=False, longest=longest and longest * BLOCK_SECONDS)
        assert stage.run({**STORY, 15: [] if longest else [stop]}, pace) is status
        video = stage.director.session
        assert (len(video.blocks), video.in_flight, video.ends[-1:]) == (blocks, None, (3 * blocks,))
        again, film = render_script(tmp_path / "again", stage.director.script, session)
        assert torch.equal(again.latents(), video.latents())
        assert again.keys == video.keys
        assert film == stage.film_bytes


def test_the_state_says_what_a_page_shows(told):
    state = told.states[-1]
    assert json.loads(json.dumps(state)) == state
    assert (state["status"], state["blocks"], state["begins"], state["waiting"]) == ("stopped", 16, 0, [])
    assert [piece[0] for piece in state["pieces"]] == [*range(16)]
    assert [piece[2:] for piece in state["pieces"]] == [[0, 9], *([12 * n - 3, 12] for n in range(1, 16))]
    assert [tuple(each.values()) for each in state["switches"]] == [
        (0, "a", "cut", None, None, "linear"),
        (2, "b", "blend", None, 3, "linear"),
        (3, "b", "blend", 5, 2, "linear"),
        (6, "d", "cut", 9, None, "linear"),
        (8, "e", "blend", None, 4, "spherical"),
        (10, "g", "recache", None, None, "linear"),
        (12, "late", "recache", None, None, "linear"),
    ]
    assert (state["fps"], state["size"]) == (16.0, [32, 16])
    assert state["codec"].startswith("avc1.")
    assert state["script"] == SCRIPT
    assert state["delay"] > 0
    versions = [state["version"] for state in told.states]
    assert versions == sorted({*versions})


def test_the_drift_of_every_block_is_measured(told):
    drift, frames = told.states[-1]["drift"], told.take.film.num_frames
    shown = [row[drift["columns"].index("frames")] for row in drift["rows"]]
    assert (len(shown), sum(shown)) == (16, frames)
    assert read_take(told.take.folder)["state"]["drift"] == drift


def test_a_drift_that_cannot_be_measured_ends_nothing(tmp_path, monkeypatch, caplog):
    def fail(log: DriftLog, fragment: Fragment, key: str = "") -> None:
        raise ValueError("no pixels")

    monkeypatch.setattr(DriftLog, "append", fail)
    with Stage(tmp_path) as stage:
        assert stage.run({-1: [say("a")], 2: [do("stop")]}) is Status.STOPPED
        assert stage.states[-1]["drift"] == {}
    assert "the drift of the film is not measured any more (no pixels)" in caplog.text


def test_places_that_are_cheap_to_go_back_to_are_marked(told):
    """There the walk back to what the next block depends on is shorter than just before."""
    assert told.states[-1]["cheap"][0] == 0
    assert 6 in told.states[-1]["cheap"]  # the cut
    assert not {1, 2, 7} & {*told.states[-1]["cheap"]}


def test_a_new_seed_stands_under_a_prompt_that_is_said_after_it():
    with Sampler(tiny.model()) as sampler:
        director = Director(start_session(), sampler, encode)
        director.say("a")
        director.make(2)
        director.rewind(1)
        director.reseed(7)
        director.say("b", Boundary.CUT)
        director.make(1)
    assert director.script == "1b | a\n1b cut seed 7 | b\n"


def test_a_prompt_for_later_waits_and_is_shown(tmp_path):
    with Stage(tmp_path) as stage:
        stage.run({-1: [say("a"), say("late", at=3 * BLOCK_SECONDS, seed=4)], 1: [do("stop")]})
        waiting = stage.states[-1]["waiting"]
    assert [(each["block"], each["text"], each["seed"]) for each in waiting] == [(3, "late", 4)]


def test_of_two_prompts_for_one_block_the_last_one_counts(tmp_path):
    later = 2 * BLOCK_SECONDS
    with Stage(tmp_path) as stage:
        stage.run({-1: [say("a"), say("b"), say("c", at=later), say("d", at=later)], 2: [say("e")], 3: [do("stop")]})
        assert stage.director.script == "2b | b\n1b | e\n"


def test_finish_makes_what_was_said_to_its_end(tmp_path):
    with Stage(tmp_path) as stage:
        said = [say("a"), say("b", boundary="blend", blend=2, at=BLOCK_SECONDS), do("finish")]
        assert stage.run({-1: said}, Pace()) is Status.STOPPED  # though nobody watches
        assert stage.director.script == "1b | a\n2b blend 2b | b\n"


def test_finish_without_a_prompt_ends_at_once(tmp_path):
    with Stage(tmp_path) as stage:
        assert stage.run({-1: [say("late", at=3), do("finish")]}) is Status.STOPPED
        assert not stage.director.session.blocks


def test_a_script_is_made_first_and_then_directed(tmp_path):
    with Stage(tmp_path, script="2b | a\n2b cut | b\n") as stage:
        said = {1: [say("c"), do("seed", seed=3)], 5: [say("d"), do("stop", at=6 * BLOCK_SECONDS)]}
        assert stage.run(said) is Status.STOPPED
        assert stage.director.script == "2b | a\n2b cut | b\n1b | c\n1b | d\n"


def test_a_run_that_ends_within_its_script_keeps_the_whole_script(tmp_path):
    script = "3b | a\n2b cut | b\n"
    with Stage(tmp_path, script=script) as stage:
        assert stage.run({2: [do("stop")]}) is Status.STOPPED
        assert stage.director.script == "2b | a\n"
        assert stage.director.state["script"] == script
        assert stage.take.plan.script == script


def test_an_embedding_without_a_text_is_no_prompt_to_direct_with(tmp_path):
    with Stage(tmp_path) as stage:
        textless = replace(encode("a"), text="")
        stage.director._direction.session = stage.director.session.switched_to(textless)
        stage.run({-1: [do("seed", seed=3)], 0: [say("a"), do("stop", at=BLOCK_SECONDS)]})
        assert stage.director.script == "1b | a\n"


def test_the_largest_length_ends_a_video(tmp_path):
    with Stage(tmp_path, script="1b | a\n") as stage:
        assert stage.run({}, Pace(is_watched=False, longest=3 * BLOCK_SECONDS)) is Status.COMPLETE
        assert len(stage.director.session.blocks) == 3


def test_an_unwatched_video_stops_two_blocks_ahead_and_is_parked(tmp_path):
    now = [0.0]
    with Stage(tmp_path) as stage:

        def pass_time() -> float:
            now[0] += 2
            return now[0]

        assert stage.run({-1: [say("a")]}, Pace(clock=pass_time)) is Status.PARKED
        assert len(stage.director.session.blocks) == 2
        assert [state["status"] for state in stage.states][-2:] == ["ahead", "parked"]


REFUSED = [
    (do("rewind", to=9), "cannot rewind to block 9; use a block from 0 to 2"),
    (say("unreadable"), "the prompt cannot be read"),
]


@pytest.mark.parametrize(("message", "sentence"), REFUSED)
def test_what_cannot_be_followed_changes_nothing_but_a_sentence(tmp_path, message, sentence):
    with Stage(tmp_path) as stage:
        stage.run({-1: [say("a")], 2: [message], 3: [do("stop")]})
        assert stage.director.script == "3b | a\n"
        assert [state["sentence"] for state in stage.states if state["sentence"].startswith(sentence)]


def test_a_script_that_is_full_takes_no_more_prompts():
    with Sampler(tiny.model()) as sampler:
        director = Director(start_session(), sampler, encode)
        for block in range(48):
            director.say(f"{block} " + "a" * 3990, at=block * BLOCK_SECONDS)
        with pytest.raises(MessageError, match="the script of this video is full"):
            director.say("one more")
        assert director.make(1).num_frames == 3


def test_a_prompt_is_seen_after_one_running_block_a_recache_four_passes_and_a_decoding(tmp_path):
    """The running block ends first. The clean pass that the recache would overwrite is not made."""
    delays = []
    for moment in (0, 3):
        inbox, passes = Inbox(), []
        with Stage(tmp_path / str(moment)) as stage:

            def watch(done: Pass, inbox=inbox, passes=passes, stage=stage, moment=moment) -> None:
                passes.append(done)
                if len(stage.director.session.blocks) == 6 and done.step == moment and done.kind is PassKind.DENOISE:
                    inbox.put(read_message(say("b")))
                    passes.clear()

            def stop(inbox=inbox, passes=passes, stage=stage) -> None:
                if stage.director.state["delay"] is not None and len(stage.director.session.blocks) == 8:
                    delays.append([done.kind for done in passes])
                    stage.director.poll = lambda: None
                    inbox.put(read_message(do("stop")))

            stage.sampler.watch, stage.director.poll = watch, stop
            stage.director.say("a")
            stage.director.run(inbox, Pace(is_watched=False))
            assert stage.director.script == "7b | a\n1b | b\n"
    at_its_end = [PassKind.RECACHE] + [PassKind.DENOISE] * 4
    assert delays == [[PassKind.DENOISE] * 3 + at_its_end, at_its_end]


def test_the_end_of_the_positions_holds_a_video_until_a_cut():
    begun = start_session().switched_to(encode("before"))
    block = torch.zeros(begun.block_shape)
    for number in range(TABLE_FRAMES // begun.config.block):
        begun = begun.extended_by(block, f"{number:064x}")
    inbox, states, left = Inbox(), [], [say("b", boundary="cut"), do("stop")]
    with Sampler(tiny.model()) as sampler:
        director = Director(begun, sampler, encode, on_change=states.append)

        def cut_when_held() -> None:
            if states[-1]["status"] == "paused" or len(director.session.blocks) > len(begun.blocks):
                inbox.put(read_message(left.pop(0)))

        director.say("a", Boundary.KEEP)
        director.poll = lambda: cut_when_held() if states and left else None
        director.run(inbox, Pace(is_watched=False))
    assert any("absolute positions end at frame 1024" in state["sentence"] for state in states)
    assert director.script == "1b cut | b\n"


def test_a_seed_before_the_first_prompt_is_refused(tmp_path):
    with Stage(tmp_path) as stage, pytest.raises(MessageError, match="there is no prompt yet"):
        stage.director.reseed(3)


def test_a_video_that_began_elsewhere_is_never_rewound_past_its_beginning(tmp_path):
    with Sampler(tiny.model()) as sampler:
        begun = sampler.sample(start_session().switched_to(encode("before")), 3)
    with Stage(tmp_path, begun) as stage:
        stage.run({-1: [say("a", boundary="keep")], 5: [do("rewind", to=2), do("rewind", to=3), do("stop", at=4)]})
        assert stage.director.script == "2b keep | a\n"
        assert any("use a block from 3 to 5" in state["sentence"] for state in stage.states)
        assert len(stage.states[-1]["pieces"]) == 5
        script = stage.director.script
        session, film = render_script(tmp_path / "again", script, begun)
        assert torch.equal(session.latents(), stage.director.session.latents())
        assert film == stage.film_bytes


def test_a_video_that_began_elsewhere_waits_for_its_first_prompt(tmp_path):
    with Sampler(tiny.model()) as sampler:
        begun = sampler.sample(start_session().switched_to(encode("before")), 1)
    with Stage(tmp_path, begun) as stage:
        stage.run({-1: [do("prepare", prompt="a")], 1: [do("stop")]})
        assert stage.director.session is begun


def test_a_text_is_encoded_once(tmp_path):
    texts = []
    director = Director(start_session(), Sampler(tiny.model()), lambda text: texts.append(text) or encode(text))
    for text in ("a", "b", "a", "b"):
        director.say(text)
        director.make(1)
    assert texts == ["a", "b"]
    director.sampler.close()


def test_a_program_directs_in_its_own_words():
    with Sampler(tiny.model()) as sampler:
        director = Director(start_session(), sampler, encode)
        with pytest.raises(SessionError, match="nothing was said yet"):
            director.make(1)
        director.say("a")
        director.make(2)
        director.say("b", blend=Blend(2, Curve.SPHERICAL))
        director.make(3)
        director.rewind(4)
        director.say("c", Boundary.CUT)
        session = director.make(1)
        with pytest.raises(ConditioningError):
            director.say("unreadable")
        with pytest.raises(MessageError, match="the prompt is empty"):
            director.say(" ")
    assert session is director.session
    assert director.script == "2b | a\n2b blend 2b spherical | b\n1b cut | c\n"


def direct_until(folder: Path, error: type[BaseException]) -> None:
    """Direct a video whose fourth block is interrupted, and check what is left."""
    with Stage(folder) as stage:

        def stop(done: Pass) -> None:
            if len(stage.director.session.blocks) == 3:
                raise error

        stage.sampler.watch = stop
        with pytest.raises(error):
            stage.run({-1: [say("a")], 2: [say("b")]})
        assert stage.states[-1]["status"] == ("failed" if error is RuntimeError else "interrupted")
        assert stage.director.script == stage.take.plan.script == "2b | a\n1b | b\n"
        assert len(stage.take.film.pieces) == 3


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupt_leaves_film_script_and_take_and_nothing_else(tmp_path, error):
    direct_until(tmp_path, error)
    gc.collect()
    assert not [each for each in gc.get_objects() if type(each) is WindowKVCache]
