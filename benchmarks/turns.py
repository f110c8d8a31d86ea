"""Takes the times of contenders that take turns, part by part, so that a busy machine is equally busy for all."""

import statistics
import time
from collections.abc import Callable, Iterable, Sequence

from contenders import Contender
from torch import Tensor

Times = dict[str, list[float]]  # seconds of each part, one a round
Clock = Callable[[], float]

PARTS = ("first block", "12 frames", "block", "four steps", "clean pass", "recache", "switch")


def measure_in_turn(contenders: Sequence[Contender], rounds: int, clock: Clock = time.thread_time) -> list[Times]:
    """Measure a video of a window of frames, the next block, a recache and a switch, in each round anew.

    The clock counts the seconds of the processor. A part that a contender does not have is missing in its times.
    """
    measured: list[Times] = [{} for _ in contenders]

    def measure(number: int, part: str, work: Callable[[], Tensor | None]) -> Tensor | None:
        began = clock()
        result = work()
        measured[number].setdefault(part, []).append(clock() - began)
        return result

    def make_block(number: int, steps: str, clean_pass: str) -> None:
        latents = measure(number, steps, contenders[number].denoise)
        assert latents is not None
        measure(number, clean_pass, lambda: contenders[number].keep(latents))

    causal = [number for number, each in enumerate(contenders) if each.is_causal]
    for _ in range(rounds):
        for number, each in enumerate(contenders):
            measure(number, "start", each.start_video)
            if not each.is_causal:
                latents = measure(number, "first block", each.denoise)
                assert latents is not None
                each.keep(latents)
                measure(number, "12 frames", each.make_clip)
        config = contenders[0].task.config
        for block in range(config.window // config.block):
            for number in causal:
                make_block(number, f"steps {block}", f"clean pass {block}")
        for number in causal:
            make_block(number, "four steps", "clean pass")
        for number in causal:
            if contenders[number].can_switch:
                measure(number, "recache", contenders[number].recache)
                measure(number, "switch", contenders[number].switch)
        for each in contenders:
            each.release()
    return [join_parts(times) for times in measured]


def join_parts(times: Times) -> Times:
    """Return the times of the parts that a table shows, from those measured."""
    starts, filling = times.get("start", []), [part for part in times if part[-1].isdigit()]
    if filling:
        times |= {
            "first block": add_up([starts, times["steps 0"]]),
            "12 frames": add_up([starts, *(times[part] for part in filling)]),
            "block": add_up([times["four steps"], times["clean pass"]]),
        }
    return {part: times[part] for part in PARTS if part in times}


def add_up(columns: Iterable[Sequence[float]]) -> list[float]:
    return [sum(row) for row in zip(*columns, strict=True)]


def describe_ratio(times: Sequence[float], others: Sequence[float]) -> str:
    """Describe the ratio of each round: its median, the least and the most."""
    ratios = [a / b for a, b in zip(times, others, strict=True)]
    return f"{statistics.median(ratios):.2f} [{min(ratios):.2f}-{max(ratios):.2f}]"


def describe_ms(seconds: Sequence[float]) -> str:
    return f"{1e3 * statistics.median(seconds):.0f}"


def format_table(columns: Iterable[str], rows: Iterable[Iterable]) -> str:
    lines = [[*columns], *([*row] for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
