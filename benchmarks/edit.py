"""Measure an edit of the last of ten segments in a real ComfyUI, and again after a restart.

python benchmarks/edit.py [seconds of a segment]

The edited video is compared with one made with empty stores.
"""

import shutil
import sys
import time
from pathlib import Path

import av
import numpy as np

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "host")]

from graphs import make_node  # noqa: E402
from host_messages import Event  # noqa: E402
from host_process import ComfyUI  # noqa: E402

from longlive.config import RolloutConfig  # noqa: E402
from longlive.units import convert_seconds_to_blocks  # noqa: E402

SEGMENTS = 10
ALLOWED = 1.3  # times the share of the blocks that are new


def make_graph(last: str, seconds: float) -> dict:
    words = [
        f"a {colour} ring moves {way} by day" for colour in ("red", "blue", "green") for way in ("left", "right", "up")
    ]
    script = "\n".join(f"{seconds}s | {prompt}" for prompt in (*words, last))
    return {
        "mini": make_node("LongLiveMiniature"),
        "session": make_node("LongLiveSession", model=["mini", 0], width=64, height=64, seed=1),
        "timeline": make_node("LongLiveTimeline", session=["session", 0], clip=["mini", 1], script=script),
        "decode": make_node("LongLiveDecode", session=["timeline", 0], vae=["mini", 2], filename_prefix="edit"),
    }


def time_queue(host: ComfyUI, prompt: dict) -> tuple[float, Path]:
    """Queue a graph; return the seconds from the start of sampling to the end of decoding, and the video file."""
    queued = host.queue(prompt)

    def samples(event: Event) -> bool:
        return event.type == "executing" and event.data["node"] == "timeline" and event.data["prompt_id"] == queued

    host.wait_for(samples)
    began = time.perf_counter()
    history = host.wait(queued)
    seconds = time.perf_counter() - began
    [file] = history.outputs["decode"]["images"]
    return seconds, host.output / file["subfolder"] / file["filename"]


def measure_difference(first: Path, second: Path) -> int:
    """Return the largest difference of two videos in any value, of 255."""
    with av.open(first) as one, av.open(second) as other:
        pairs = zip(one.decode(video=0), other.decode(video=0), strict=True)
        return max(
            int(np.abs(a.to_ndarray(format="rgb24").astype(int) - b.to_ndarray(format="rgb24")).max()) for a, b in pairs
        )


def main(seconds: float) -> int:
    blocks = convert_seconds_to_blocks(seconds, RolloutConfig().block)
    share = 1 / SEGMENTS
    ratios = []
    with ComfyUI() as host:
        whole, _ = time_queue(host, make_graph("a yellow square stays still at night", seconds))
        say(f"{SEGMENTS} segments of {blocks} blocks: {whole:.1f} s")
        edited, file = time_queue(host, make_graph("a yellow square moves down at dusk", seconds))
        ratios.append(edited / whole)
        say(f"the last one edited: {edited:.1f} s, {edited / whole:.3f} of the first")
        host.stop()
        host.start()
        again, restarted = time_queue(host, make_graph("a red square moves down at dawn", seconds))
        ratios.append(again / whole)
        say(f"edited again after a restart: {again:.1f} s, {again / whole:.3f} of the first")
        shutil.rmtree(host.base / "user" / "longlive")
        host.stop()
        host.start()
        _, fresh = time_queue(host, make_graph("a red square moves down at dawn", seconds))
        worst = measure_difference(restarted, fresh)
        same = restarted.read_bytes() == fresh.read_bytes()
        say(f"against a video made with empty stores: {worst} of 255, {'the same file' if same else 'another file'}")
        assert file.stat().st_size
    say(f"allowed: {ALLOWED * share:.3f}")
    return int(max(ratios) > ALLOWED * share or worst > 1)


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else 8))
