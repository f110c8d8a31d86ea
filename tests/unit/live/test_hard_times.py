"""Bad messages and full disks change nothing of a video: its latents, script and film are those it would have had."""

import contextlib
import itertools
import json
import logging
import random
from collections.abc import Iterator

import pytest
import torch
from directed import Stage, do, render_script, say
from disks import limit_file_size

from longlive.errors import MessageError, StoreError, VideoError
from longlive.live.inbox import Inbox
from longlive.live.messages import read_message
from longlive.live.pace import Pace, Status

STORY = {-1: [say("a")], 2: [say("b", boundary="blend", blend=2)], 5: [say("c", boundary="cut")], 7: [do("stop")]}
SCRIPT = "2b | a\n3b blend 2b | b\n2b cut | c\n"
BAD_MESSAGES = 500


def compose_bad_messages() -> Iterator[str | bytes]:
    """Compose messages that nobody may send: not JSON, not a message, and what cannot be followed."""
    chance = random.Random(0)
    good = [json.loads(text) for texts in STORY.values() for text in texts]
    for number in itertools.count():
        match number % 8:
            case 0:
                yield bytes(chance.randrange(256) for _ in range(chance.randrange(40)))
            case 1:
                yield json.dumps(chance.choice(good))[: chance.randrange(1, 12)]
            case 2:
                yield say("a" * (1 << 20))
            case 3:
                yield json.dumps(chance.choice(good) | {"do": chance.choice(["", "dance", "STOP", "__class__"])})
            case 4:
                yield json.dumps(chance.choice(good) | {f"field{number}": number})
            case 5:
                yield say("b", blend=chance.choice([-1, 0, 1e9, "two", [], True]))
            case 6:
                yield do("rewind", to=chance.choice([10**6, -1, 1.5, "2", None]))
            case 7:
                yield say(f"unreadable {number}")


def test_bad_messages_change_nothing(tmp_path, caplog):
    """Those that are messages go to the run, which says what is wrong; the others never come so far."""
    caplog.set_level(logging.INFO)
    left, bad, sent = dict(STORY), compose_bad_messages(), 0
    with Stage(tmp_path) as stage:
        inbox = Inbox()

        def put_messages() -> None:
            nonlocal sent
            for message in itertools.islice(bad, 80):
                with contextlib.suppress(MessageError):
                    inbox.put(read_message(message))
                sent += 1
            for when in [when for when in left if when <= len(stage.director.session.blocks)]:
                inbox.drain()  # the bad ones that came so far, so that the good ones find room
                for text in left.pop(when):
                    inbox.put(read_message(text))

        stage.director.poll = put_messages
        assert stage.director.run(inbox, Pace(is_watched=False)) is Status.STOPPED
        script, session, film = stage.director.script, stage.director.session, stage.film_bytes
    assert sent >= BAD_MESSAGES
    assert "the prompt cannot be read" in caplog.text
    assert "cannot rewind to block 1000000" in caplog.text
    assert script == SCRIPT
    expected, expected_film = render_script(tmp_path / "again", SCRIPT)
    assert torch.equal(session.latents(), expected.latents())
    assert film == expected_film


@pytest.mark.parametrize("room", [0, 1500])
def test_a_full_disk_holds_the_video_until_there_is_room(tmp_path, room):
    """The block that found no room is in memory; the film gets it when somebody goes on."""
    trouble = contextlib.ExitStack()
    with Stage(tmp_path) as stage:
        inbox, left = Inbox(), dict(STORY)

        def direct() -> None:
            blocks = len(stage.director.session.blocks)
            if blocks == 3 and not seen:
                trouble.enter_context(limit_file_size(len(stage.film_bytes) + room if room else 0))
                seen.append("full")
            if stage.states and stage.states[-1]["status"] == "paused" and seen == ["full"]:
                seen.append(stage.states[-1]["sentence"])
                held.append((len(stage.director.session.blocks), len(stage.take.film.pieces), stage.director.script))
                trouble.close()
                inbox.put(read_message(do("resume")))
            for when in [when for when in left if when <= blocks]:
                for text in left.pop(when):
                    inbox.put(read_message(text))

        seen, held = [], []
        stage.director.poll = direct
        with trouble:
            assert stage.director.run(inbox, Pace(is_watched=False)) is Status.STOPPED
        assert "free some space" in seen[1]
        (blocks, pieces, script), session, film = held[0], stage.director.session, stage.film_bytes
        assert pieces in (blocks - 1, blocks)
        assert script == f"2b | a\n{blocks - 2}b blend 2b | b\n"
        assert stage.director.script == stage.take.plan.script == SCRIPT
    expected, expected_film = render_script(tmp_path / "again", SCRIPT)
    assert torch.equal(session.latents(), expected.latents())
    assert film == expected_film


def test_a_program_learns_of_a_full_disk_and_goes_on_when_there_is_room(tmp_path):
    with Stage(tmp_path) as stage:
        stage.director.say("a")
        stage.director.make(2)
        with limit_file_size(0), pytest.raises((VideoError, StoreError), match="free some space"):
            stage.director.make(1)
        with limit_file_size(0), pytest.raises(VideoError, match="free some space"):
            stage.director.rewind(1)
        assert stage.director.script == "3b | a\n"
        stage.director.make(2)
        film = stage.film_bytes
        assert stage.take.plan.script == "5b | a\n"
    assert film == render_script(tmp_path / "again", "5b | a\n")[1]


def test_a_disk_that_is_full_from_the_beginning_is_named(tmp_path):
    with limit_file_size(0), pytest.raises((VideoError, StoreError), match="cannot be"):
        Stage(tmp_path)
