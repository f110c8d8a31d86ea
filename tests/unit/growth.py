"""How the time of a function grows with its input, on a machine that does other things too."""

import time
from collections.abc import Callable

TRIES = 5
SHORTEST = 5e-4  # seconds; in less, the cost of the call itself dominates


def measure_growth(function: Callable[[str], object], small: str, large: str) -> float:
    """Divide the shortest time for a large input by that for a small one; 0 if both are too short to compare."""
    before, after = (min(measure_seconds(function, text) for _ in range(TRIES)) for text in (small, large))
    return after / max(before, SHORTEST) if after > SHORTEST else 0.0


def measure_seconds(function: Callable[[str], object], text: str) -> float:
    """Measure the processor time of this thread, which other processes do not add to."""
    begin = time.thread_time()
    function(text)
    return time.thread_time() - begin
