"""Kill, interrupt and starve real runs for minutes and compare what comes out with an undisturbed one.

python tests/soak/soak.py              everything; the table goes into docs/reliability.md
python tests/soak/soak.py --only kills one part
"""

import argparse
import contextlib
import logging
import os
import random
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
import tiny_tuning  # noqa: E402
import torch  # noqa: E402
from patience import LIMIT_SECONDS  # noqa: E402
from reliability import make_table, write_table  # noqa: E402
from renders import BLOCKS, Render, Whole, check_entries, processes  # noqa: E402

from longlive.config import Positions, RolloutConfig  # noqa: E402
from longlive.model.vae_streams import StreamingDecoder  # noqa: E402
from longlive.rollout.sampler import Sampler  # noqa: E402
from longlive.session.block_store import Store  # noqa: E402
from longlive.session.boundary import Boundary  # noqa: E402
from longlive.session.session import Session  # noqa: E402
from longlive.video.writer import VideoWriter  # noqa: E402

log = logging.getLogger("soak")

SEED = 8
KILLS, INTERRUPTS = 200, 60
STOPS_PER_RENDER = 5  # then it may run to its end
INTERRUPTED = (130, 143, -signal.SIGTERM)  # exit status; the last if it comes before the command line handles it
HOUR_BLOCKS = 4800  # of 3 frames, 12 pixel frames: an hour at 16 a second
GROWTH_BYTES = 64 << 20  # of an hour-long video after its first eighth; its latents are 7 MB
STORY = ((3, None), (2, Boundary.KEEP), (3, Boundary.RECACHE), (2, Boundary.RENEW), (2, Boundary.CUT))
SEEDS = 3  # of the videos that processes make in one store
ROUNDS = 12  # of each process
ROOM, LITTLE_ROOM = 1 << 30, 20_000  # bytes: the second is that of four blocks
SHARED = (  # processes, the limit of their store, whether another process harms it
    (2, ROOM, False), (4, ROOM, False), (2, LITTLE_ROOM, False), (4, LITTLE_ROOM, False), (2, ROOM, True),
    (4, LITTLE_ROOM, True),
)  # fmt: skip


def stop_often(folder: Path, count: int, seed: int, numbers: tuple[int, ...], whole: Whole) -> list[object]:
    """Stop renders at random instants, let each end after a few, and compare; a row of the table."""
    draw, hits, made, longest = random.Random(f"{seed} {numbers}"), 0, 0, whole.seconds
    places = [0] * (BLOCKS + 1)  # how many blocks were finished when it was stopped
    while hits < count:
        made += 1
        render = Render(folder / f"{numbers[0]}-{made}")
        shutil.copytree(whole.cache, render.folder / "cache")
        for _ in range(min(STOPS_PER_RENDER, count - hits)):
            run, begin = render.start(), time.monotonic()
            stored = render.count_stored()
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
            places[render.count_stored()] += 1
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
    outcome = f"{made} videos, each with the latents and the file of an undisturbed run; nothing unfinished is left"
    return [hits, f"{outcome}; with 0 to {BLOCKS} blocks finished: {', '.join(map(str, places))}"]


def soak_kills(folder: Path, count: int, seed: int) -> list[object]:
    return ["SIGKILL at random instants", *stop_often(folder, count, seed, (signal.SIGKILL,), Whole(folder))]


def soak_interrupts(folder: Path, count: int, seed: int) -> list[object]:
    numbers = (signal.SIGINT, signal.SIGTERM)
    return ["Ctrl-C and SIGTERM at random instants", *stop_often(folder, count, seed, numbers, Whole(folder))]


def soak_hour(folder: Path, count: int, seed: int) -> list[object]:
    """Sample, store, decode and write an hour of video in one process: its memory does not grow."""
    process, seen = psutil.Process(), []
    config = RolloutConfig(window=9, sink=3, positions=Positions.UNBOUNDED)
    decoder, video = StreamingDecoder(tiny_tuning.load_tiny_vae()), tiny.session(config, seed=seed)
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
    with av.open(folder / "hour.mp4") as video_file:
        frames = video_file.streams.video[0].frames
    assert frames == video.pixel_frames == 12 * count - 3
    later = seen[len(seen) // 8 :]
    grown = max(rss for rss, _, _ in later) - later[0][0]
    assert grown < GROWTH_BYTES, f"it has grown by {grown >> 20} MB"
    assert len({fds for _, fds, _ in later}) == len({threads for _, _, threads in later}) == 1, later
    sizes = [rss >> 20 for rss, _, _ in later]
    fds, threads = later[0][1:]
    held = f"{min(sizes)} to {max(sizes)} MB, {fds} descriptors, {name_threads(threads)}"
    outcome = f"{frames:,} pixel frames; {held} throughout"
    return ["blocks of one video", count, outcome]


def name_threads(number: int) -> str:
    return "1 thread" if number == 1 else f"{number} threads"


def make_story(seed: int, store: Store | None) -> Session:
    with Sampler(tiny.model(), store=store) as sampler:
        video = tiny.session(seed=seed)
        for number, (blocks, boundary) in enumerate(STORY):
            if boundary:
                video = video.switched_to(tiny.prompt(number), boundary)
            video = sampler.sample(video, blocks)
    return video


def make_videos(folder: Path, disk_bytes: int, rounds: int, seed: int) -> None:
    """Make a few videos again and again with a store that other processes use and harm."""
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
    """Share a store between processes, with much room or little, some with a process that damages entries.

    Every video is right.
    """
    started = 0
    while started < count:
        several, limit, harmed = SHARED[started % len(SHARED)]
        blocks, stop = folder / f"blocks{started}", processes.Event()
        vandal = processes.Process(target=harm, args=(blocks, started, stop))
        vandal.start() if harmed else None
        makers = [
            processes.Process(target=make_videos, args=(blocks, limit, ROUNDS, 10 * started + n))
            for n in range(several)
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
        started += 1
    outcome = (
        f"2 and 4 processes, {ROUNDS} videos each, some with little room or with harm beside them; every video right"
    )
    return ["stores shared by processes", count, outcome]


@contextlib.contextmanager
def mount(folder: Path, options: str) -> Iterator[bool]:
    """Mount a small or read-only file system; yield False if this machine does not allow it."""
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True)
    try:
        yield done.returncode == 0
    finally:
        if done.returncode == 0:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill_disk(render: Render, draw: random.Random) -> int:
    return render.finish(file_bytes=draw.randrange(0, 60_000))


def shrink_disk(render: Render, draw: random.Random) -> int:
    where = draw.choice((render.store, render.video.parent))
    with mount(where, f"size={4 * draw.randint(1, 30)}k"):
        return render.finish()


def lock_disk(render: Render, draw: random.Random) -> int:
    where = draw.choice((render.store, render.video.parent))
    with mount(where, "ro,size=1m"):
        return render.finish()


def remove_disk(render: Render, draw: random.Random) -> int:
    run, where = render.start(), draw.choice((render.store, render.video.parent, render.folder / "cache"))
    while run.exitcode is None:
        run.join(draw.uniform(0.05, 0.4))
        shutil.rmtree(where, ignore_errors=True)
    return run.exitcode


DISKS: tuple[Callable[[Render, random.Random], int], ...] = (fill_disk, shrink_disk, lock_disk, remove_disk)


def soak_disks(folder: Path, count: int, seed: int) -> list[object]:
    """Make videos on a disk that refuses or vanishes: each is right, or a line says why and a later run makes it."""
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
        render.video.parent.mkdir(exist_ok=True)
        assert render.finish() == 0, (render.folder / "said.txt").read_text()[-3000:]
        whole.check(render)
        shutil.rmtree(render.folder)
    outcome = f"{ended[0]} finished, {ended[1]} with one line that says why; each right once there is room again"
    return ["full, small, read-only and vanishing disks", count, outcome]


PARTS: dict[str, tuple[Callable[[Path, int, int], list[object]], int]] = {
    "kills": (soak_kills, KILLS),
    "interrupts": (soak_interrupts, INTERRUPTS),
    "hour": (soak_hour, HOUR_BLOCKS),
    "store": (soak_store, 12),
    "disks": (soak_disks, 40),
}


def run_command() -> int:
    options = make_parser().parse_args()
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
        write_table("soak", make_table(["what", "times", "outcome"], rows))
    return 0


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--count", type=int, help="of one part, instead of its own")
    return parser


if __name__ == "__main__":
    sys.exit(run_command())
