"""How far the numbers of clean videos and of faults stay away from the limits of the drift meter.

python benchmarks/drift_margins.py [first seed]

The miniature makes 32 clean videos: prompts, seeds and boundaries of every kind, up to a minute long. Then faults are
put into ten of them. All are encoded as a film is, and the meter measures what these fragments decode to.
"""

import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT)]

from broken_videos import BLOCK, FAULTS, FROZEN_FRAMES, TINT, tint  # noqa: E402

from longlive.config import Positions, RolloutConfig  # noqa: E402
from longlive.evaluation.drift import (  # noqa: E402
    FREEZE_SHARE,
    JUMP_LIMIT,
    LIMITS,
    BlockDrift,
    Fault,
    SwitchMark,
)
from longlive.evaluation.drift_log import DriftLog, mark_switches  # noqa: E402
from longlive.evaluation.report import Table  # noqa: E402
from longlive.miniature.clips import choose_scene, seed_random  # noqa: E402
from longlive.miniature.evaluation.video_sampler import VideoSampler  # noqa: E402
from longlive.miniature.files import Miniature, load_miniature  # noqa: E402
from longlive.model.vae_streams import StreamingDecoder  # noqa: E402
from longlive.session.boundary import Blend, Boundary  # noqa: E402
from longlive.session.session import Session  # noqa: E402
from longlive.units import FPS, count_pixel_frames  # noqa: E402
from longlive.video.pixels import to_bytes  # noqa: E402

NUM_CLEAN, NUM_BROKEN = 32, 10
LENGTHS = (
    (20,), (8, 8), (14,), (6, 7, 8), (27,), (10, 10), (5, 5, 5, 5), (80,),
    (9, 9), (12, 6, 6), (20,), (4, 4, 4, 4, 4), (16,), (7, 14), (27, 13), (40, 40),
)  # fmt: skip
"""Blocks of each segment, for one video after the other."""
WAYS = (*((boundary, None) for boundary in Boundary), (Boundary.RECACHE, Blend(3)))
MIN_BROKEN = 15 * BLOCK  # pixel frames of a video that a fault is put into
DIRECTIONS = ((1, 0, -1), (-1, 1, 0), (0, -1, 1), (1, 1, 1), (-1, -1, -1), (-1, 0, 1), (1, -1, 0), (0, 1, -1))
AFTER, BEFORE = 4 * FPS, 3 * FPS  # pixel frames from a switch to a fault, and from that to the end of its segment


@dataclass(frozen=True, slots=True)
class CleanVideo:
    """A video of the miniature."""

    seed: int
    bytes_FHW3: Tensor
    marks: list[SwitchMark]
    places: range  # pixel frames at which a fault may begin; empty if there is none
    description: str


def make_clean_video(miniature: Miniature, seed: int) -> CleanVideo:
    draw = seed_random("drift", seed)
    lengths = LENGTHS[seed % len(LENGTHS)]
    config = RolloutConfig(positions=Positions.UNBOUNDED) if seed // len(LENGTHS) % 2 else RolloutConfig()
    with VideoSampler(miniature) as sampler:
        session = None
        for blocks in lengths:
            scene, (boundary, blend) = choose_scene(draw, anywhere=session is None), draw.choice(WAYS)
            if session is None:
                session = sampler.start_session(scene, seed, config)
            else:
                session = session.switched_to(sampler.make_prompt(scene), boundary, blend=blend)
            session = sampler.sample(session, blocks)
    assert session is not None
    decoder = StreamingDecoder(miniature.vae)
    bytes_FHW3 = torch.cat([to_bytes(decoder.push(block)) for block in session.blocks])
    return CleanVideo(seed, bytes_FHW3, mark_switches(session), find_places(session), session.describe())


def find_places(session: Session) -> range:
    """Find where a fault can begin: in the longest segment whose thing moves, some time after its switch."""
    starts = [switch.frame for switch in session.switches]
    ends = [*starts[1:], session.num_frames]
    moving = [
        (count_pixel_frames(start), count_pixel_frames(end))
        for start, end, switch in zip(starts, ends, session.switches, strict=True)
        if "still" not in switch.prompt.text
    ]
    start, end = max(moving, key=lambda span: span[1] - span[0], default=(0, 0))
    return range(start + AFTER, end - BEFORE)


def measure(bytes_FHW3: Tensor, marks: list[SwitchMark]) -> list[BlockDrift]:
    """Encode a video and measure what its fragments decode to."""
    log = DriftLog()
    log.expect(marks)
    for part_FHW3 in bytes_FHW3.split(BLOCK):
        log.append(log.encoding.encode(part_FHW3, log.num_frames))
    return log.measured


def break_video(video: CleanVideo, fault: Fault) -> list[BlockDrift]:
    at = random.Random(video.seed).choice(video.places)  # noqa: S311 (the same each time)
    if fault is not Fault.DRIFT:
        return measure(FAULTS[fault](video.bytes_FHW3, at), video.marks)
    red, green, blue = DIRECTIONS[video.seed % len(DIRECTIONS)]
    return measure(tint(video.bytes_FHW3, by=(TINT[0] * red, TINT[0] * green, TINT[0] * blue)), video.marks)


def find_faults(blocks: list[BlockDrift]) -> set[Fault]:
    return {block.fault for block in blocks if block.fault}


def summarise(blocks: list[BlockDrift]) -> dict[str, float]:
    """Return the numbers that faults are judged by: each trait's farthest deviation, the least share, the jump."""
    judged = [block.deviations for block in blocks if block.deviations]
    numbers = {name: max((abs(each[name]) for each in judged), default=0.0) * limit for name, limit in LIMITS.items()}
    numbers["any trait, in limits"] = max((block.deviation or 0.0 for block in blocks), default=0.0)
    numbers["motion share"] = min(block.motion_share for block in blocks if block.motion_share is not None)
    quiet = [block.jump for block in blocks if block.jump is not None and block.deviations and not block.has_switch]
    numbers["jump"] = max(quiet, default=0.0)
    return numbers


def tabulate_margins(clean: list[list[BlockDrift]], broken: dict[Fault, list[list[BlockDrift]]]) -> Table:
    rows = []
    limits = {**LIMITS, "any trait, in limits": 1.0, "motion share": FREEZE_SHARE, "jump": JUMP_LIMIT}
    numbers = [summarise(blocks) for blocks in clean]
    for name, limit in limits.items():
        fault = {"motion share": Fault.FREEZE, "jump": Fault.JUMP}.get(name, Fault.DRIFT)
        far, near = (min, max) if fault is Fault.FREEZE else (max, min)
        shown = name in ("any trait, in limits", "motion share", "jump")
        faulty = near(summarise(blocks)[name] for blocks in broken[fault]) if shown else None
        rows.append((name, far(each[name] for each in numbers), limit, faulty))
    columns = (("number", ""), (f"nearest of {len(clean)} clean", ".2f"), ("limit", ".2f"), ("nearest fault", ".2f"))
    return Table("Margins", columns, tuple(rows))


def tabulate_verdicts(clean: list[list[BlockDrift]], broken: dict[Fault, list[list[BlockDrift]]]) -> Table:
    rows = [("clean", len(clean), sum(bool(find_faults(blocks)) for blocks in clean), "")]
    how = {
        Fault.DRIFT: f"colours or brightness move by {TINT[0]:g} of 255 a second",
        Fault.FREEZE: f"a frame is repeated for {FROZEN_FRAMES / FPS:g} s",
        Fault.JUMP: f"{BLOCK} pixel frames, a block, are left out",
    }
    for fault, videos in broken.items():
        rows.append((fault.value, len(videos), sum(fault in find_faults(blocks) for blocks in videos), how[fault]))
    return Table("Verdicts", (("videos", ""), ("number", "d"), ("called faulty", "d"), ("fault", "")), tuple(rows))


def calibrate(first_seed: int = 0) -> Iterator[tuple[CleanVideo, list[BlockDrift], dict[Fault, list[BlockDrift]]]]:
    """Yield each clean video, its numbers, and those of its faults for the first ones that have a place for them."""
    miniature, num_broken = load_miniature(), 0
    for seed in range(first_seed, first_seed + NUM_CLEAN):
        video, broken = make_clean_video(miniature, seed), {}
        if video.places and len(video.bytes_FHW3) >= MIN_BROKEN and num_broken < NUM_BROKEN:
            broken = {fault: break_video(video, fault) for fault in FAULTS}
            num_broken += 1
        yield video, measure(video.bytes_FHW3, video.marks), broken


def run_calibration(first_seed: int = 0) -> tuple[list[list[BlockDrift]], dict[Fault, list[list[BlockDrift]]]]:
    """Return the numbers of the clean videos, and of those with each fault."""
    clean, broken = [], {fault: [] for fault in FAULTS}
    for video, blocks, with_fault in islice(calibrate(first_seed), NUM_CLEAN):
        clean.append(blocks)
        for fault, measured in with_fault.items():
            broken[fault].append(measured)
        found = {fault.value: fault in find_faults(measured) for fault, measured in with_fault.items()}
        sys.stderr.write(
            f"{video.seed}: {len(video.bytes_FHW3) / FPS:.1f} s, {find_faults(blocks) or 'clean'} {found}\n"
        )
        if find_faults(blocks) or not all(found.values()):
            sys.stderr.write(f"{video.description}\n{[block.warning for block in blocks if block.fault]}\n")
    return clean, broken


def main(first_seed: int) -> int:
    torch.set_num_threads(1)
    clean, broken = run_calibration(first_seed)
    sys.stdout.write(f"{tabulate_verdicts(clean, broken)}\n\n{tabulate_margins(clean, broken)}\n")
    right = all(fault in find_faults(blocks) for fault, videos in broken.items() for blocks in videos)
    return 0 if right and not any(map(find_faults, clean)) else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 0))
