"""How the time of a function grows with its input, on a machine that does other things too."""

import time
from collections.abc import Callable

TRIES = 5
SHORTEST = 5e-4  # seconds: below, what a call costs by itself counts more than what it does


def growth(function: Callable[[str], object], small: str, large: str) -> float:
    """The shortest time for a large input over that for a small one; 0 where both are too short to matter."""
    before, after = (min(seconds_for(function, text) for _ in range(TRIES)) for text in (small, large))
    return after / max(before, SHORTEST) if after > SHORTEST else 0.0


def seconds_for(function: Callable[[str], object], text: str) -> float:
    """Processor time of this thread, which no other process adds to."""
    begun = time.thread_time()
    function(text)
    return time.thread_time() - begun
