"""LongLive Live in the real host: a run is steered over HTTP, and its script makes the same video again."""

import itertools
import json
from collections import Counter

import pytest
import torch
from director import NODE, RemoteDirector, make_live_graph, read_film
from graphs import save_latents
from host_messages import HostError, Interrupted
from host_state import forget, is_nothing_alive, read_latents

RED, BLUE, SQUARE = (
    "a red ring moves right at night",
    "a blue ring moves down at dusk",
    "a blue square moves left by day",
)
HUGE = b'{"do": "say", "prompt": "' + b"a" * (1 << 20) + b'"}'
BAD_BODIES = (
    b"",
    b"{",
    b"[]",
    b"null",
    b"NaN",
    b'{"do": 1}',
    b'{"do": "fly"}',
    b'{"do": "say"}',
    b'{"do": "say", "prompt": ""}',
    b'{"do": "say", "prompt": "a", "boundary": "melt"}',
    b'{"do": "say", "prompt": "a", "blend": -3}',
    b'{"do": "say", "prompt": "a", "at": -1}',
    b'{"do": "say", "prompt": "a", "at": 1e999}',
    b'{"do": "say", "prompt": "a", "take": "b"}',
    b'{"do": "rewind", "to": -1}',
    b'{"do": "rewind", "to": 1.5}',
    b'{"do": "seed", "seed": -1}',
    b'{"do": "seed", "seed": 99999999999999999999}',
    b'{"do": "watch", "seconds": 1, "viewer": "../../x"}',
    b'{"do": "say", "prompt": "\\ud800"}',
    b"[" * 9000,
    b'{"do": "say", "prompt": "' + b"a" * 5000 + b'"}',
    b"\xff\xfe",
    json.dumps({"do": "pause", "do ": 1}).encode(),
    b'{"do": "pause", "do": "stop"}',
)


def test_a_directed_video_is_the_one_of_its_script_whatever_else_is_sent(newest):
    forget(newest)
    director = RemoteDirector(newest)
    director.begin(save_latents(make_live_graph(take=director.take), NODE, "directed"))
    director.send(do="say", prompt=RED)
    director.wait_for_blocks(3)
    answers = Counter(director.post(body)[0] for body in itertools.islice(itertools.cycle(BAD_BODIES), 500))
    director.send(do="say", prompt=BLUE, boundary="blend", blend=2)
    director.wait_until(
        lambda state: len(state["switches"]) == 2 and state["blocks"] >= state["switches"][1]["block"] + 3
    )
    director.send(do="rewind", to=100)
    refused = director.wait_until(lambda state: bool(state["sentence"]))
    director.send(do="pause")
    paused = director.wait_until(lambda state: state["status"] == "paused")
    to = paused["switches"][1]["block"] + 1
    director.send(do="rewind", to=to)
    director.send(do="seed", seed=7)
    director.send(do="say", prompt=SQUARE, boundary="cut", at=(to + 1) * 0.75)
    director.send(do="stop", at=(to + 3) * 0.75)
    director.send(do="resume")
    director.wait_until(lambda state: state["status"] == "stopped")
    history = director.end()

    assert answers == {400: 500}
    assert "cannot rewind to block 100" in refused["sentence"]
    over = director.read_state()
    assert over is not None
    assert over["status"] == "stopped"
    assert [each["text"] for each in over["switches"]] == [RED, BLUE, BLUE, SQUARE]
    assert over["blocks"] == to + 3
    assert director.post(b'{"do": "pause"}')[0] == 409
    film, latents = read_film(newest, director.take), read_latents(newest, "directed")
    assert history.outputs[NODE]["longlive_film"] == [director.take]

    forget(newest)
    again = newest.run(save_latents(make_live_graph(script=over["script"]), NODE, "again"))

    assert torch.equal(read_latents(newest, "again"), latents)
    assert read_film(newest, *again.outputs[NODE]["longlive_film"]) == film


def test_requests_get_the_right_answers(newest):
    director = RemoteDirector(newest)
    assert director.post(b'{"do": "pause"}') == (
        404,
        {"error": "there is no such take; press Direct in LongLive Live to begin one"},
    )
    director.begin(make_live_graph(take=director.take, seed=1))

    assert director.post(b'{"do": "pause"}', "text/plain")[0] == 415
    assert director.post(HUGE)[0] == 413
    assert director.post(b'{"do": "pause"}', **{"Sec-Fetch-Site": "cross-site"})[0] == 403
    assert director.post(b'{"do": "pause"}', Origin="http://evil.example")[0] == 403
    assert director.post(b'{"do": "pause"}', Origin=newest.address)[0] == 200
    for path in ("/longlive/live", "/longlive/live/", f"/longlive/live/{director.take[:31]}", "/longlive/live/../../x"):
        with pytest.raises(HostError, match=r"40[45]"):
            newest.get(path)
    director.send(do="stop")
    history = director.end()

    assert "longlive_video" not in history.outputs[NODE], "nothing was directed"


def test_an_interrupted_take_is_kept_and_its_session_with_it(newest):
    director = RemoteDirector(newest)
    graph = make_live_graph(take=director.take, script=f"2b | {RED}", seed=2)
    director.begin(graph)
    director.wait_until(lambda state: state["status"] == "ahead", is_watched=False)
    newest.interrupt()
    with pytest.raises(Interrupted):
        director.end()
    state = director.read_state()

    assert state is not None
    assert (state["status"], state["script"]) == ("interrupted", f"{state['blocks']}b | {RED}\n")
    assert is_nothing_alive(newest)
    graph[NODE]["inputs"]["filename_prefix"] = "video/again"  # not in the host's cache
    assert newest.run(graph).outputs[NODE]["longlive_film"] == [director.take]
    assert director.read_state() == state
    with pytest.raises(HostError, match="began with another session"):
        newest.run(make_live_graph(take=director.take, script=f"2b | {RED}", seed=3))


def test_a_take_of_a_killed_host_goes_on(newest):
    director = RemoteDirector(newest)
    graph = make_live_graph(take=director.take, script=f"3b | {RED}", seed=4)
    director.begin(graph)
    director.wait_for_blocks(4)
    newest.kill()
    newest.start()
    left = director.read_state()
    assert left is not None
    film = read_film(newest, director.take)

    director.begin(graph)
    director.wait_for_blocks(left["blocks"] + 1)
    director.send(do="stop")
    director.end()

    assert left["blocks"] >= 4
    assert left["status"] == "interrupted"
    assert film
    assert read_film(newest, director.take).startswith(film)
