"""Cancel at random instants in a real ComfyUI: what is shown plays, and the next queue makes the same video.

python benchmarks/cancel.py [instants in Decode, and as many in sampling]
"""

import random
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "host")]

from host_process import ComfyUI  # noqa: E402
from host_state import count_stored, find_store  # noqa: E402
from videos import count_frames, interrupt_node, make_video, make_video_graph, remake_video  # noqa: E402

from longlive.config import RolloutConfig  # noqa: E402

SEGMENT = 4  # blocks; there are three segments
BLOCKS = 3 * SEGMENT


def main(count: int) -> int:
    rng, wrong = random.Random(0), 0  # noqa: S311 (instants, the same each time)
    graph = make_video_graph("a green ring stays still by day", blocks=SEGMENT)
    steps = len(RolloutConfig().steps)
    with ComfyUI() as host:
        whole = remake_video(host, graph)
        for where, store, first, last, step in (
            ("decode", "fragments", 1, BLOCKS - 1, 0.3),  # a step of its progress takes so many seconds
            ("timeline", "blocks", steps, steps * (BLOCKS - 1), 0.05),
        ):
            for _ in range(count):
                shutil.rmtree(find_store(host).parent if where == "timeline" else find_store(host, "fragments"))
                host.free()
                value, delay = rng.randrange(first, last), rng.uniform(0, step)
                shown = count_frames(interrupt_node(host, graph, where, value, delay))
                found, same = count_stored(host, store), make_video(host, graph) == whole
                wrong += not (shown and found and same)
                outcome = "the same file" if same else "another file"
                sys.stdout.write(
                    f"{where} {value} of {last}, {delay:.2f} s: {shown} frames shown, {found} kept, then {outcome}\n"
                )
                sys.stdout.flush()
    sys.stdout.write(f"{wrong} wrong of {2 * count}\n")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 10))
