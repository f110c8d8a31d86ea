"""A page watches the film of a node that runs: the events, the addresses, and what others are refused."""

import json
import urllib.error
import urllib.request
from pathlib import Path

import model_files
import pytest
from graphs import FOX, OWL, chain, make_node
from host_messages import Graph, Interrupted
from host_process import ComfyUI
from host_state import find_store, forget
from short_graphs import change_inputs, end_graph
from videos import count_frames, make_video, make_video_graph, read_video

from longlive.video.fragments import has_beginning

BLOCKS = 3
LAST = "a green ring stays still by day"
STRANGER = "0" * 32


def watch(graph: Graph) -> dict:
    """Copy a graph of the miniature, with a VAE on its timeline."""
    return change_inputs(graph, "timeline", vae=["mini", 2])


def cut_decode(graph: Graph) -> dict:
    """Copy a graph without its Decode, so that nothing but the timeline can have rendered."""
    return end_graph({id: item for id, item in graph.items() if id != "decode"}, "timeline")


def list_changes(host: ComfyUI, since: int) -> list[dict]:
    """List what the host has said of films."""
    return [event.data for event in host.events[since:] if event.type == "longlive.film"]


def ask(host: ComfyUI, path: str, method: str = "GET", **headers: str) -> tuple[int, dict, bytes]:
    """Request a path; return status, headers and body."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(host.address + path, method=method, headers=named)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, dict(error.headers), error.read()


def list_entries(host: ComfyUI) -> dict[Path, int]:
    """List the stored fragments; one that is written again gets another file number."""
    return {path: path.stat().st_ino for path in find_store(host, "fragments").glob("??/*")}


def test_a_film_grows_while_the_node_runs_and_decode_then_decodes_nothing(host, tmp_path):
    plain = make_video_graph(LAST, seed=41)
    (tmp_path / "unwatched.mp4").write_bytes(make_video(host, plain))
    forget(host)
    since = len(host.events)
    history = host.run(cut_decode(watch(plain)))

    events, changes = host.events[since:], list_changes(host, since)
    assert [(change["number"], change["node"]) for change in changes] == [(n, "timeline") for n in range(-1, BLOCKS)]
    assert all(len(json.dumps({"type": "longlive.film", "data": change})) <= 300 for change in changes)
    order = [event.type for event in events if event.type in ("progress", "longlive.film")]
    assert "progress" in order[order.index("longlive.film") + 2 :]  # the first block is shown while others are made
    assert history.outputs["timeline"]["longlive_film"] == [changes[0]["id"]]
    assert history.previews == ()

    address = f"/longlive/film/{changes[0]['id']}"
    state = host.get(address)
    assert [piece[:2] for piece in state["pieces"]] == [[n, n + 1] for n in range(BLOCKS)]
    assert (state["fps"], state["size"], state["codec"][:7]) == (16, [64, 64], "avc1.64")
    parts = [host.get(f"{address}/init.mp4")]
    parts += [host.get(f"{address}/{number}.{count}.m4s") for number, count, *_ in state["pieces"]]
    film = host.base / "temp" / "longlive" / changes[0]["id"] / "film.mp4"
    assert film.read_bytes() == b"".join(parts) == host.get(f"{address}/film.mp4")
    assert count_frames(film) == 4 * 3 * BLOCKS - 3
    assert has_beginning(film, tmp_path / "unwatched.mp4")

    entries = list_entries(host)
    assert len(entries) == BLOCKS + 1  # and the end
    (tmp_path / "watched.mp4").write_bytes(read_video(host, host.run(watch(plain))))
    assert list_entries(host) == entries
    assert has_beginning(tmp_path / "watched.mp4", film)


def test_watching_a_later_node_shows_all_before_it_and_cancel_keeps_the_film(newest):
    graph = chain((FOX, 1), (OWL, 12), seed=42)
    graph |= {"vae": make_node("VAELoader", vae_name=model_files.VAE.name)}
    graph["chunk1"]["inputs"]["vae"] = ["vae", 0]
    graph = end_graph(graph, "chunk1")
    since = len(newest.events)
    queued = newest.queue(graph)
    newest.wait_for(
        lambda event: event.type == "longlive.film" and event.data["number"] == 1 and event.data["node"] == "chunk1"
    )
    newest.interrupt()
    with pytest.raises(Interrupted):
        newest.wait(queued)
    changes = list_changes(newest, since)
    assert [event.data["output"] for event in newest.events[since:] if event.type == "executed"] == []
    state = newest.get(f"/longlive/film/{changes[0]['id']}")
    assert len(state["pieces"]) == len(changes) - 1 >= 2  # the first is the chunk before
    assert (
        count_frames(newest.base / "temp" / "longlive" / changes[0]["id"] / "film.mp4") == 12 * len(state["pieces"]) - 3
    )


def test_where_the_disk_refuses_the_film_the_node_makes_its_video_all_the_same(newest):
    folder, aside = newest.base / "temp" / "longlive", newest.base / "temp" / "aside"
    folder.mkdir(parents=True, exist_ok=True)
    folder.rename(aside)
    folder.write_text("no folder can be made here")
    try:
        history = newest.run(watch(make_video_graph(LAST, seed=44)))
    finally:
        folder.unlink()
        aside.rename(folder)
    assert "longlive_film" not in history.outputs["timeline"]
    assert "cannot be written after 0 frames: Not a directory" in newest.log
    assert len(read_video(newest, history)) > 1000


@pytest.fixture(scope="module")
def watched(newest):
    """The address of a film of three blocks, and its file."""
    since = len(newest.events)
    newest.run(cut_decode(watch(make_video_graph(LAST, seed=43))))
    id = list_changes(newest, since)[-1]["id"]
    return f"/longlive/film/{id}", (newest.base / "temp" / "longlive" / id / "film.mp4").read_bytes()


REFUSED = (
    (f"/longlive/film/{STRANGER}", 404),
    ("/longlive/film/", 404),
    ("/longlive/film", 404),
    ("/longlive/film/../../comfyui.log", 404),
    ("/longlive/film/%2e%2e%2f%2e%2e%2fcomfyui.log", 404),
    (f"/longlive/film/{STRANGER[:-1]}", 404),
    (f"/longlive/film/{STRANGER.replace('0', 'A')}", 404),
    (f"/longlive/film/{STRANGER}0/film.mp4", 404),
    ("{film}/0.2.m4s", 404),
    ("{film}/3.4.m4s", 404),
    ("{film}/-1.3.m4s", 404),
    ("{film}/0.1", 404),
    ("{film}/00000000000000000000000000000000000000.1.m4s", 404),
    ("{film}/film.jsonl", 404),
    ("{film}/film.mp4?v=4", 404),
    ("{film}/film.mp4?v=x", 404),
    ("{film}/", 404),
)


@pytest.mark.parametrize(("path", "status"), REFUSED)
def test_what_names_no_film_or_no_piece_is_not_found(newest, watched, path, status):
    assert ask(newest, path.format(film=watched[0]))[0] == status


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_a_film_can_only_be_read(newest, watched, method):
    assert ask(newest, watched[0], method)[0] == 405


def test_a_file_is_sent_in_ranges_and_a_version_of_it_stays(newest, watched):
    address, content = watched
    status, headers, body = ask(newest, f"{address}/film.mp4", Range="bytes=100-199")
    assert (status, body, headers["Content-Range"]) == (206, content[100:200], f"bytes 100-199/{len(content)}")
    assert ask(newest, f"{address}/film.mp4", Range="bytes=-50")[::2] == (206, content[-50:])
    assert ask(newest, f"{address}/film.mp4", Range="bytes=100-")[::2] == (206, content[100:])
    assert ask(newest, f"{address}/film.mp4", Range=f"bytes={len(content)}-")[0] == 416
    assert ask(newest, f"{address}/film.mp4", Range="bytes=x")[0] == 416
    status, headers, body = ask(newest, f"{address}/film.mp4", "HEAD")
    assert (status, body, int(headers["Content-Length"])) == (200, b"", len(content))
    status, headers, body = ask(newest, f"{address}/film.mp4?v=2")
    assert content.startswith(body)
    assert (0 < len(body) < len(content), "immutable" in headers["Cache-Control"]) == (True, True)
    assert ask(newest, f"{address}/film.mp4")[1]["Cache-Control"] == "no-store"
    assert "immutable" in ask(newest, f"{address}/0.1.m4s")[1]["Cache-Control"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "{host}"}, 200),
        ({"Sec_Fetch_Site": "same-origin"}, 200),
        ({"Sec_Fetch_Site": "cross-site"}, 403),
        ({"Origin": "https://example.org"}, 403),
    ],
)
def test_a_page_of_another_site_is_refused(host, headers, status):
    """On each release: older ones check no `Sec-Fetch-Site` themselves."""
    named = {name: value.format(host=host.address) for name, value in headers.items()}
    found = ask(host, f"/longlive/film/{STRANGER}", **named)[0]
    assert found == (404 if status == 200 else status)
