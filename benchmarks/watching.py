"""Measure what it costs to watch a video while a node of a real ComfyUI makes it, and whether its film always plays.

python benchmarks/watching.py [rounds]    in each: watched, then sampling and Decode apart, then watched beside a client
                                          of the socket that never reads; processor time of the host
python benchmarks/watching.py film        decode the growing file every tenth of a second
python benchmarks/watching.py memory      RAM over 20 minutes of a film
"""

import shutil
import socket
import statistics
import sys
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "host")]

from host_process import ComfyUI  # noqa: E402
from host_state import find_store  # noqa: E402
from memory import BLOCK, COLUMNS, ROWS, WIDTH, measure_resident_mb  # noqa: E402
from short_graphs import change_inputs, end_graph  # noqa: E402
from turns import describe_ratio, format_table  # noqa: E402
from videos import count_frames, make_video_graph  # noqa: E402

from longlive.model.vae import WanVAE  # noqa: E402
from longlive.model.vae_streams import StreamingDecoder  # noqa: E402
from longlive.units import FPS, PIXEL_FRAMES_PER_FRAME  # noqa: E402
from longlive.video.film import Film  # noqa: E402
from longlive.video.render import VideoRenderer  # noqa: E402

SEGMENT = 4  # blocks; there are three segments
TENTH = 0.1  # seconds between two looks at the file
MINUTES = 20
TICKS = 100  # of /proc in a second
GRAPH = make_video_graph("a green ring stays still by day", blocks=SEGMENT)
ALONE = {id: node for id, node in GRAPH.items() if id != "decode"}
WATCHED = end_graph(change_inputs(ALONE, "timeline", vae=["mini", 2]), "timeline")


def measure_cost(rounds: int) -> None:
    """Print the processor time of each way in turn, and what of the messages has come."""
    times: dict[str, list[float]] = {"watched": [], "apart": [], "beside a stalled client": []}
    messages: dict[str, list[int]] = {name: [] for name in times}
    with ComfyUI() as host:
        run_again(host, GRAPH)
        for _ in range(rounds):
            for name, graph in (("watched", WATCHED), ("apart", GRAPH)):
                seen = len(host.events)
                times[name].append(run_again(host, graph))
                messages[name].append(count_films(host, seen))
            with stall(host):
                seen = len(host.events)
                times["beside a stalled client"].append(run_again(host, WATCHED))
                messages["beside a stalled client"].append(count_films(host, seen))
    rows = [
        (name, f"{statistics.median(each):.2f}", describe_ratio(each, times["apart"]), min(messages[name]))
        for name, each in times.items()
    ]
    sys.stdout.write(format_table(("way", "CPU s", "to apart", "events, at least"), rows) + "\n")
    ratio = describe_ratio(times["beside a stalled client"], times["watched"])
    sys.stdout.write(f"beside a stalled client, to watched: {ratio}\n")


def run_again(host: ComfyUI, graph: dict) -> float:
    """Run a graph with nothing stored; return the seconds of the processor."""
    shutil.rmtree(find_store(host).parent, ignore_errors=True)
    host.free()
    began = read_cpu_seconds(host.pid)
    host.run(graph)
    return read_cpu_seconds(host.pid) - began


def count_films(host: ComfyUI, since: int) -> int:
    return sum(event.type == "longlive.film" and event.data["number"] >= 0 for event in host.events[since:])


def read_cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


@contextmanager
def stall(host: ComfyUI):
    """Keep a client of the host's socket that never reads."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", host.port))
        lines = f"GET /ws?clientId=stalled HTTP/1.1\r\nHost: 127.0.0.1:{host.port}\r\nUpgrade: websocket\r\n"
        lines += (
            "Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        client.sendall(lines.encode())
        yield


def check_film() -> None:
    """Decode the file every tenth of a second of a run; it must have all that was finished before."""
    looks = 0
    with ComfyUI() as host:
        queued = host.queue(WATCHED)
        ended = threading.Event()
        threading.Thread(target=lambda: (host.wait(queued), ended.set()), daemon=True).start()
        while not ended.wait(TENTH):
            changes = [event.data for event in host.events if event.type == "longlive.film"]
            if changes and changes[-1]["number"] >= 0:
                newest = changes[-1]
                found = count_frames(host.base / "temp" / "longlive" / newest["id"] / "film.mp4")
                assert found >= newest["first_frame"] + newest["num_frames"], (found, newest)
                looks += 1
    sys.stdout.write(f"{looks} looks: the file had every finished frame\n")


def measure_memory() -> None:
    """Print the RAM of a process that decodes and encodes a film of latents that it has from the beginning."""
    torch.manual_seed(0)
    sys.stdout.write("minutes   RSS MB   film MB\n")
    with tempfile.TemporaryDirectory() as folder:
        film = Film.create(Path(folder) / "film")
        renderer = VideoRenderer(StreamingDecoder(WanVAE(WIDTH), at_once=BLOCK), film)
        due = 0
        count = 60 * MINUTES * FPS // (BLOCK * PIXEL_FRAMES_PER_FRAME) + 1
        for latents_BFCHW in torch.randn(1, BLOCK * count, 16, ROWS, COLUMNS).split(BLOCK, dim=1):
            renderer.render_block(latents_BFCHW)
            if film.num_frames >= 60 * due * FPS:
                minutes = film.num_frames / FPS / 60
                sys.stdout.write(f"{minutes:7.2f} {measure_resident_mb():8.1f} {film.state.length / 1e6:9.2f}\n")
                sys.stdout.flush()
                due += 2


def main(what: str) -> None:
    match what:
        case "film":
            check_film()
        case "memory":
            measure_memory()
        case rounds:
            measure_cost(int(rounds))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "5")
