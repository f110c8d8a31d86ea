"""Kill, interrupt and starve real runs for minutes and compare what comes out with an undisturbed one.

python tests/soak/soak.py              everything; the table goes into docs/reliability.md
python tests/soak/soak.py --only kills one part
"""

import argparse
import contextlib
import logging
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / folder) for folder in ("..", "", "unit")]

import av  # noqa: E402
import psutil  # noqa: E402
import tiny  # noqa: E402
import torch  # noqa: E402
import tuned  # noqa: E402
from patience import LIMIT_SECONDS  # noqa: E402
from reliability import table, write_table  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from longlive import session_file  # noqa: E402
from longlive.__main__ import SESSION_SUFFIX, main  # noqa: E402
from longlive.config import Positions, RolloutConfig  # noqa: E402
from longlive.files import ABANDONED_SECONDS  # noqa: E402
from longlive.model.vae import StreamingDecoder  # noqa: E402
from longlive.sampler import Sampler  # noqa: E402
from longlive.session import Session  # noqa: E402
from longlive.store import Store, stamp  # noqa: E402
from longlive.timeline import Boundary  # noqa: E402
from longlive.video import VideoWriter  # noqa: E402

log = logging.getLogger("soak")

SEED = 8
KILLS, INTERRUPTS = 200, 60
STOPS_A_RENDER = 5  # before it may end
SCRIPT = (
    "2b | a red ring moves left at night\n1b keep | a red ring moves right at night\n"
    "2b | a red ring moves up at dusk\n1b cut | a blue disc moves down at dusk\n"
)
BLOCKS = 6  # of it
INTERRUPTED = (130, 143, -signal.SIGTERM)  # the last before the command line listens
HOUR_BLOCKS = 4800  # of 3 frames, 12 pixel frames: an hour at 16 a second
GROWTH_BYTES = 64 << 20  # of an hour-long video after its first eighth; its latents are 7 MB
STORY = ((3, None), (2, Boundary.KEEP), (3, Boundary.RECACHE), (2, Boundary.RENEW), (2, Boundary.DISCARD))
SEEDS = 3  # of the videos that processes make in one store
ROUNDS = 12  # of each process
ROOM, LITTLE_ROOM = 1 << 30, 20_000  # bytes: the second is that of four blocks
SHARED = (  # processes, the limit of their store, whether another process harms it
    (2, ROOM, False), (4, ROOM, False), (2, LITTLE_ROOM, False), (4, LITTLE_ROOM, False), (2, ROOM, True),
    (4, LITTLE_ROOM, True),
)  # fmt: skip

processes = multiprocessing.get_context("forkserver")  # children that start at once, though torch takes seconds
processes.set_forkserver_preload(["longlive.__main__", "longlive.miniature.files", "tiny"])


def command_line(folder: Path, arguments: list[str], begun, file_bytes: int | None) -> None:
    """The command line in a process of its own, with all it says in a file."""
    try:
        torch.set_num_threads(1)
        said = os.open(folder / "said.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(said, 1), os.dup2(said, 2)
        if file_bytes is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        begun.set()
        sys.exit(main(arguments))
    except KeyboardInterrupt:
        sys.exit(130)


class Render:
    """A video of the miniature in a folder of its own, made by the command line as often as it takes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "out").mkdir(parents=True)
        (folder / "story.txt").write_text(SCRIPT)

    @property
    def film(self) -> Path:
        return self.folder / "out" / "story.mp4"

    @property
    def session(self) -> Path:
        return self.film.with_suffix(SESSION_SUFFIX)

    @property
    def store(self) -> Path:
        return self.folder / "blocks"

    def start(self, file_bytes: int | None = None) -> multiprocessing.process.BaseProcess:
        arguments = ["render", str(self.folder / "story.txt"), "--miniature", "-o", str(self.film)]
        begun = processes.Event()
        run = processes.Process(
            target=command_line,
            args=(self.folder, [*arguments, "--store", str(self.store), "--device", "cpu"], begun, file_bytes),
        )
        run.start()
        while not begun.wait(1):
            assert run.is_alive(), "the command line did not begin"
        return run

    def finish(self, file_bytes: int | None = None) -> int:
        run = self.start(file_bytes)
        run.join(LIMIT_SECONDS)
        assert run.exitcode is not None, "the command line does not end"
        return run.exitcode

    def parts(self) -> list[Path]:
        return [*self.folder.rglob("*.part")]

    @property
    def stores(self) -> tuple[Path, Path]:
        """Of blocks and of the fragments of films."""
        return self.store, self.store.with_name(f"{self.store.name}-fragments")

    def age_parts(self) -> None:
        """Make what a killed process was writing as old as it must be to be swept away."""
        long_ago = time.time() - 2 * ABANDONED_SECONDS
        for part in self.parts():
            os.utime(part, (long_ago, long_ago))

    def num_stored(self) -> int:
        return len([*self.store.glob("??/*.safetensors")])

    def check_store(self) -> None:
        for folder in self.stores:
            check_entries(folder)

    def sweep(self) -> None:
        """Write an entry: the first that a store writes sweeps away what killed processes left."""
        for folder in self.stores:
            Store(folder, memory_bytes=0).put("0" * 64, torch.zeros(1))


def check_entries(folder: Path) -> None:
    """Every entry of a store is what was stored."""
    for path in folder.glob("??/*.safetensors"):
        entry = load_file(path)
        assert torch.equal(entry.pop("digest"), stamp(entry)), f"{path} is a bad entry"


class Whole:
    """The undisturbed video that all others are compared with, and how long it took."""

    def __init__(self, folder: Path) -> None:
        first, second = Render(folder / "whole"), Render(folder / "again")
        assert first.finish() == 0, (first.folder / "said.txt").read_text()
        shutil.copytree(first.folder / "cache", second.folder / "cache")  # digests, as in every later run
        begin = time.monotonic()
        assert second.finish() == 0
        self.seconds = time.monotonic() - begin
        self.latents, self.film = session_file.load(first.session).latents(), first.film.read_bytes()
        self.cache = first.folder / "cache"
        assert second.film.read_bytes() == self.film, "two undisturbed runs wrote two files"

    def check(self, render: Render) -> None:
        assert torch.equal(session_file.load(render.session).latents(), self.latents), "other latents after a resume"
        assert render.film.read_bytes() == self.film, "another file after a resume"
        assert render.parts() == [], f"left over: {render.parts()}"

    def check_beginning(self, render: Render) -> None:
        """What an interrupt leaves: a session that is a beginning of the whole, a film that plays, no part."""
        if render.session.exists():
            latents = session_file.load(render.session).latents()
            assert torch.equal(latents, self.latents[:, : latents.shape[1]]), "other latents before the interrupt"
        if render.film.exists():
            with av.open(render.film) as film:
                assert sum(1 for _ in film.decode(video=0)) > 0, "a film without a picture"
        assert render.parts() == [], f"left over: {render.parts()}"


def stop_often(folder: Path, count: int, seed: int, numbers: tuple[int, ...], whole: Whole) -> list[object]:
    """Stop renders at random instants, let each end after a few, and compare; a row of the table."""
    draw, hits, made, longest = random.Random(f"{seed} {numbers}"), 0, 0, whole.seconds
    places = [0] * (BLOCKS + 1)  # how many blocks were finished when it was stopped
    while hits < count:
        made += 1
        render = Render(folder / f"{numbers[0]}-{made}")
        shutil.copytree(whole.cache, render.folder / "cache")
        for _ in range(min(STOPS_A_RENDER, count - hits)):
            run, begin = render.start(), time.monotonic()
            stored = render.num_stored()
            run.join(draw.uniform(0, longest * max(1, BLOCKS - stored) / BLOCKS))
            number = draw.choice(numbers)
            os.kill(run.pid, number) if run.exitcode is None else None
            run.join(LIMIT_SECONDS)
            said = (render.folder / "said.txt").read_text(errors="replace")
            assert "Traceback" not in said, said[-3000:]
            render.check_store()
            if run.exitcode == 0:
                if not stored:
                    longest = min(longest, time.monotonic() - begin)  # the machine is quicker than before
                break
            hits += 1
            places[render.num_stored()] += 1
            if number == signal.SIGKILL:
                assert run.exitcode == -number
                render.age_parts()
            else:
                assert run.exitcode in INTERRUPTED, run.exitcode
                whole.check_beginning(render)
        assert render.finish() == 0, (render.folder / "said.txt").read_text()[-3000:]
        render.sweep()
        whole.check(render)
        render.check_store()
        shutil.rmtree(render.folder)
    told = f"{made} videos, each with the latents and the file of an undisturbed run; 0 parts, 0 bad entries"
    return [hits, f"{told}; with 0 to {BLOCKS} blocks finished: {', '.join(map(str, places))}"]


def soak_kills(folder: Path, count: int, seed: int) -> list[object]:
    return ["SIGKILL at random instants", *stop_often(folder, count, seed, (signal.SIGKILL,), Whole(folder))]


def soak_interrupts(folder: Path, count: int, seed: int) -> list[object]:
    numbers = (signal.SIGINT, signal.SIGTERM)
    return ["Ctrl-C and SIGTERM at random instants", *stop_often(folder, count, seed, numbers, Whole(folder))]


def soak_hour(folder: Path, count: int, seed: int) -> list[object]:
    """A video of an hour, sampled, stored, decoded and written by one process: it does not grow."""
    process, seen = psutil.Process(), []
    config = RolloutConfig(window=9, sink=3, positions=Positions.UNBOUNDED)
    decoder, video = StreamingDecoder(tuned.vae()), tiny.session(config, seed=seed)
    store = Store(folder / "blocks", memory_bytes=1 << 20, disk_bytes=1 << 22)
    with VideoWriter(folder / "hour.mp4") as writer, Sampler(tiny.model(), store=store) as sampler, torch.no_grad():
        for number in range(count):
            if number % 20 == 19:
                video = video.switched_to(tiny.prompt(number), Boundary.RECACHE)
            for longer in sampler.extend(video, 1):
                video = longer
                writer.write(decoder.push(video.blocks[-1]))
            if number % max(1, count // 40) == 0:
                seen.append((process.memory_info().rss, process.num_fds(), process.num_threads()))
        writer.write(decoder.flush())
    with av.open(folder / "hour.mp4") as film:
        frames = film.streams.video[0].frames
    assert frames == video.pixel_frames == 12 * count - 3
    later = seen[len(seen) // 8 :]
    grown = max(rss for rss, _, _ in later) - later[0][0]
    assert grown < GROWTH_BYTES, f"it has grown by {grown >> 20} MB"
    assert len({fds for _, fds, _ in later}) == len({threads for _, _, threads in later}) == 1, later
    sizes = [rss >> 20 for rss, _, _ in later]
    fds, threads = later[0][1:]
    told = f"{frames:,} pixel frames; {min(sizes)} to {max(sizes)} MB, {fds} descriptors, {threads} threads throughout"
    return ["blocks of one video", count, told]


def make_story(seed: int, store: Store | None) -> Session:
    with Sampler(tiny.model(), store=store) as sampler:
        video = tiny.session(seed=seed)
        for number, (blocks, boundary) in enumerate(STORY):
            if boundary:
                video = video.switched_to(tiny.prompt(number), boundary)
            video = sampler.extended(video, blocks)
    return video


def make_videos(folder: Path, disk_bytes: int, rounds: int, seed: int) -> None:
    """Make a few stories again and again over a store that others use and harm."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    draw, right = random.Random(seed), {n: make_story(n, None).latents() for n in range(SEEDS)}
    for _ in range(rounds):
        number = draw.randrange(SEEDS)
        store = Store(folder, memory_bytes=0, disk_bytes=disk_bytes)
        assert torch.equal(make_story(number, store).latents(), right[number]), "another video"


def harm(folder: Path, seed: int, stop) -> None:
    """Remove, cut and replace entries, and now and then the whole folder."""
    draw = random.Random(seed)
    while not stop.wait(draw.uniform(0, 0.05)):
        entries = [*folder.glob("??/*.safetensors")]
        with contextlib.suppress(OSError):
            match draw.randrange(8) if entries else 7:
                case 0 | 1 | 2:
                    draw.choice(entries).unlink()
                case 3 | 4 | 5:
                    path = draw.choice(entries)
                    os.truncate(path, draw.randrange(path.stat().st_size + 1))
                case 6:
                    draw.choice(entries).write_bytes(draw.randbytes(200))
                case 7:
                    shutil.rmtree(folder, ignore_errors=draw.random() < 0.5)


def soak_store(folder: Path, count: int, seed: int) -> list[object]:
    """Processes on one store, with room and without, alone and with one that harms it: every video is right."""
    begun = 0
    while begun < count:
        several, limit, harmed = SHARED[begun % len(SHARED)]
        blocks, stop = folder / f"blocks{begun}", processes.Event()
        vandal = processes.Process(target=harm, args=(blocks, begun, stop))
        vandal.start() if harmed else None
        makers = [
            processes.Process(target=make_videos, args=(blocks, limit, ROUNDS, 10 * begun + n)) for n in range(several)
        ]
        for maker in makers:
            maker.start()
        for maker in makers:
            maker.join(LIMIT_SECONDS)
        stop.set()
        vandal.join() if harmed else None
        assert [maker.exitcode for maker in makers] == [0] * several, "a video over a shared store was wrong"
        if not harmed:
            check_entries(blocks)
            assert [*blocks.rglob("*.part")] == [], "a part was left over"
        begun += 1
    told = f"2 and 4 processes, {ROUNDS} videos each, some with little room or with harm beside them; every video right"
    return ["stores shared by processes", count, told]


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[bool]:
    """A small or read-only file system of its own; False where this machine allows none."""
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True)
    try:
        yield done.returncode == 0
    finally:
        if done.returncode == 0:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def full_disk(render: Render, draw: random.Random) -> int:
    return render.finish(file_bytes=draw.randrange(0, 60_000))


def small_disk(render: Render, draw: random.Random) -> int:
    where = draw.choice((render.store, render.film.parent))
    with mounted(where, f"size={4 * draw.randint(1, 30)}k"):
        return render.finish()


def read_only_disk(render: Render, draw: random.Random) -> int:
    where = draw.choice((render.store, render.film.parent))
    with mounted(where, "ro,size=1m"):
        return render.finish()


def vanishing_disk(render: Render, draw: random.Random) -> int:
    run, where = render.start(), draw.choice((render.store, render.film.parent, render.folder / "cache"))
    while run.exitcode is None:
        run.join(draw.uniform(0.05, 0.4))
        shutil.rmtree(where, ignore_errors=True)
    return run.exitcode


DISKS: tuple[Callable[[Render, random.Random], int], ...] = (full_disk, small_disk, read_only_disk, vanishing_disk)


def soak_disks(folder: Path, count: int, seed: int) -> list[object]:
    """A disk that refuses or goes: the video is right, or one line says what is wrong; with room again it is made."""
    whole, draw, ended = Whole(folder), random.Random(seed), {0: 0, 1: 0}
    for number in range(count):
        render = Render(folder / f"disk{number}")
        shutil.copytree(whole.cache, render.folder / "cache")
        disk = DISKS[number % len(DISKS)]
        status = disk(render, draw)
        said = (render.folder / "said.txt").read_text(errors="replace")
        assert status in ended, f"{disk.__name__} ended with {status}: {said[-2000:]}"
        assert "Traceback" not in said, f"{disk.__name__}: {said[-3000:]}"
        ended[status] += 1
        render.film.parent.mkdir(exist_ok=True)
        assert render.finish() == 0, (render.folder / "said.txt").read_text()[-3000:]
        whole.check(render)
        shutil.rmtree(render.folder)
    told = f"{ended[0]} finished, {ended[1]} with one line that says why; each right once there is room again"
    return ["full, small, read-only and vanishing disks", count, told]


PARTS: dict[str, tuple[Callable[[Path, int, int], list[object]], int]] = {
    "kills": (soak_kills, KILLS),
    "interrupts": (soak_interrupts, INTERRUPTS),
    "hour": (soak_hour, HOUR_BLOCKS),
    "store": (soak_store, 12),
    "disks": (soak_disks, 40),
}


def run_command() -> int:
    options = parser().parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    log.setLevel(logging.INFO)
    torch.set_num_threads(1)
    rows = []
    for name, (soak, count) in PARTS.items():
        if options.only in (None, name):
            begin = time.monotonic()
            with tempfile.TemporaryDirectory(prefix="soak-") as folder:
                rows.append(soak(Path(folder), options.count or count, options.seed))
            log.info("%s: %s (%.0f s)", name, rows[-1], time.monotonic() - begin)
    if options.only is None and not options.count:
        write_table("soak", table(["what", "times", "outcome"], rows))
    return 0


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--count", type=int, help="of one part, instead of its own")
    return parser


if __name__ == "__main__":
    sys.exit(run_command())
