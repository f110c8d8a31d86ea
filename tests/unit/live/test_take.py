"""A take is found again by its address, continues after anything, and belongs to one session and one owner."""

import json
import os
from dataclasses import replace

import pytest
import torch
from directed import BLOCK_SECONDS, TAKE, Stage, do, encode, render_script, say, start_session

from longlive.errors import SessionError
from longlive.live.pace import Status
from longlive.live.take import (
    Take,
    find_take,
    read_plan,
    read_state,
    remove_old_takes,
)
from longlive.session.block_store import Store


def test_a_take_that_is_over_renders_what_was_recorded(tmp_path):
    with Stage(tmp_path) as stage:
        stage.run({-1: [say("a")], 2: [say("b", boundary="cut")], 4: [do("rewind", to=3), do("stop")]})
        film, session = stage.film_bytes, stage.director.session
    assert read_plan(tmp_path / TAKE).status is Status.STOPPED
    with Stage(tmp_path) as again:
        again.director.make_script()
        assert torch.equal(again.director.session.latents(), session.latents())
        assert again.film_bytes == film
        assert again.renderer.num_decoded == 0  # the film is there already


def test_the_state_of_a_take_that_nobody_makes_is_read_from_its_folder(tmp_path):
    with Stage(tmp_path) as stage:
        stage.run({-1: [say("a"), say("late", at=9)], 2: [do("stop")]})
        state = stage.states[-1]
    found = find_take(tmp_path, TAKE)
    assert found
    assert read_state(found) | {"version": 0} == state | {"version": 0}
    assert (state["take"], state["status"], len(state["pieces"])) == (TAKE, "stopped", 2)


@pytest.mark.parametrize("address", ["", "..", "0" * 32, TAKE.upper(), f"{TAKE}/", TAKE[:-1], f"../{TAKE}", "0" * 33])
def test_only_an_address_finds_a_take(tmp_path, address):
    Take.create(tmp_path / TAKE, start_session()).close()
    assert find_take(tmp_path, TAKE) == tmp_path / TAKE
    assert find_take(tmp_path, address) is None


def test_what_waits_is_kept(tmp_path):
    with Stage(tmp_path, script="2b | a\n3b blend 2b seed 4 | b\n") as stage:
        stage.run({1: [say("late", at=7 * BLOCK_SECONDS, boundary="renew"), do("stop")]})
    plan = read_plan(tmp_path / TAKE)
    assert plan.script == "2b | a\n3b blend 2b seed 4 | b\n"
    assert [(each.block, each.text, each.seed) for each in plan.waiting] == [(2, "b", 4), (7, "late", None)]
    assert (plan.urgent_end, plan.stop_block) == (5, 1)


def test_a_take_that_was_cut_off_goes_on_as_if_it_had_not_been(tmp_path):
    store = Store()
    with Stage(tmp_path, script="2b | a\n3b cut | b\n", store=store) as stage:
        stage.director.say("c", at=6 * BLOCK_SECONDS)
        stage.director.make(1)
    with Stage(tmp_path, store=store) as stage:  # and again, before it is where it was
        stage.director.make(1)
    with Stage(tmp_path, store=store) as stage:
        stage.run({7: [do("stop")]})
        script, film = stage.director.script, stage.film_bytes
    assert script == "2b | a\n4b cut | b\n1b | c\n"
    assert render_script(tmp_path / "again", script)[1] == film


def test_a_prompt_that_was_said_and_had_no_block_yet_is_not_lost(tmp_path):
    with Stage(tmp_path) as stage:
        stage.run({-1: [say("a")], 1: [do("pause"), say("b", boundary="keep", seed=3), do("stop")]})
    with Stage(tmp_path) as again:
        assert again.director.state["waiting"][-1]["text"] == "b"
        again.director.make(2)
        assert again.director.script == "1b | a\n1b keep seed 3 | b\n"


def test_a_film_that_shows_another_video_is_made_again_from_there(tmp_path):
    """For example after a decoder was replaced, or a process was killed between the film and its script."""
    with Stage(tmp_path) as stage:
        stage.run({-1: [say("a")], 2: [say("b")], 3: [do("stop")]})
        film = stage.film_bytes
        stage.director.rewind(2)
        stage.director.say("c")
        stage.renderer.render_block(torch.zeros_like(stage.director.session.blocks[0]))
    with Stage(tmp_path) as again:
        again.director.make_script()
        assert again.film_bytes == film


@pytest.mark.parametrize("changes", [{"seed": 8}, {"model": "other"}, {"width": 48}], ids=["seed", "weights", "size"])
def test_a_take_of_another_session_is_refused(tmp_path, changes):
    Take.create(tmp_path / TAKE, start_session()).close()
    with pytest.raises(SessionError, match="began with another session: its weights, size, seed"):
        Take.open(tmp_path / TAKE, replace(start_session(), **changes))


def test_a_take_of_a_session_with_other_blocks_is_refused(tmp_path):
    begun = start_session().switched_to(encode("before"))
    block = torch.zeros(begun.block_shape)
    Take.create(tmp_path / TAKE, begun.extended_by(block, "0" * 64)).close()
    with pytest.raises(SessionError, match="began with another session"):
        Take.open(tmp_path / TAKE, begun.extended_by(block, "1" * 64))


def test_a_take_has_one_owner(tmp_path):
    with Take.create(tmp_path / TAKE, start_session()):
        with pytest.raises(SessionError, match="is being made; wait until it ends"):
            Take.open(tmp_path / TAKE, start_session())
        with pytest.raises(SessionError, match="holds a take already"):
            Take.create(tmp_path / TAKE, start_session())
    Take.open(tmp_path / TAKE, start_session()).close()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"version": 1}',
        '{"version": 2, "begins_with": {}, "script": "", "plan": {}, "state": {}}',
        '{"version": 1, "begins_with": {}, "script": "", "plan": {"script": 3}, "state": {}}',
        '{"version": 1, "begins_with": {}, "script": "", "plan": [], "state": {}}',
    ],
)
def test_a_damaged_take_is_refused(tmp_path, content):
    Take.create(tmp_path / TAKE, start_session()).close()
    (tmp_path / TAKE / "take.json").write_text(content)
    with pytest.raises(SessionError, match="begin a new take"):
        Take.open(tmp_path / TAKE, start_session())


def test_a_take_whose_decisions_are_damaged_is_refused(tmp_path):
    with Stage(tmp_path) as stage:
        stage.run({-1: [say("a"), say("late", at=9, blend=2)], 1: [do("stop")]})
    path = tmp_path / TAKE / "take.json"
    saved = json.loads(path.read_text())
    for name, value in (("blend", 0), ("blend", "x"), ("seed", -1), ("block", -1), ("boundary", "fade"), ("text", 3)):
        damaged = json.loads(path.read_text())
        damaged["plan"]["waiting"][0][name] = value
        path.write_text(json.dumps(damaged))
        with pytest.raises(SessionError, match="is damaged"):
            read_plan(tmp_path / TAKE)
        path.write_text(json.dumps(saved))
    assert read_plan(tmp_path / TAKE).waiting[0].text == "late"


def test_a_damaged_film_is_made_again(tmp_path):
    with Stage(tmp_path) as stage:
        stage.run({-1: [say("a")], 2: [do("stop")]})
        film = stage.film_bytes
    (tmp_path / TAKE / "film.jsonl").write_text("{}\n")
    with Stage(tmp_path) as again:
        again.director.make_script()
        assert again.film_bytes == film


def test_the_oldest_takes_that_nobody_makes_make_room(tmp_path):
    for number in range(4):
        folder = tmp_path / f"{number:032x}"
        Take.create(folder, start_session()).close()
        (folder / "film.mp4").write_bytes(bytes(1000))
        os.utime(folder / "take.json", (number + 1, number + 1))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "take.json").write_bytes(bytes(5000))
    with Take.open(tmp_path / f"{0:032x}", start_session()) as oldest:
        (oldest.folder / "film.mp4").write_bytes(bytes(1000))
        os.utime(oldest.folder / "take.json", (1, 1))
        sizes = sum(file.stat().st_size for file in oldest.folder.iterdir())
        remove_old_takes(tmp_path, limit=2 * sizes + 100)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{0:032x}", f"{3:032x}", "notes"]


def test_a_discarded_take_leaves_nothing(tmp_path):
    Take.create(tmp_path / TAKE, start_session()).discard()
    assert not [*tmp_path.iterdir()]
