"""How the weights of a file were trained to roll out: by its name, as nothing in a file says it."""

from ..config import RolloutConfig

FOUR_LEVELS = (1000, 750, 500, 250)
ROLLING_FORCING_FILE, LONG_VIDEO_FILE = "rolling_forcing", "longvideo"  # of Rolling Forcing, and of Causal-Forcing
ROLLOUTS = {ROLLING_FORCING_FILE: RolloutConfig.roll(), LONG_VIDEO_FILE: RolloutConfig.roll(steps=FOUR_LEVELS)}
LICENCE = (
    "the licence of Rolling Forcing's weights allows academic use only; their model card says MIT, so take them as "
    "non-commercial"
)


def find_trained_rollout(name: str) -> RolloutConfig | None:
    """Find in a file's name the rollout that its weights were trained for; None where the name says nothing."""
    plain = name.lower().replace("-", "_")
    return next((rollout for part, rollout in ROLLOUTS.items() if part in plain), None)


def is_used_averaged(name: str) -> bool:
    """Return whether the authors of a file of this name use the averaged weights in it."""
    return find_trained_rollout(name) == ROLLOUTS[ROLLING_FORCING_FILE]


def write_rollout_warning(name: str) -> str:
    """Write how to use a file whose weights were not trained block by block; empty for any other."""
    rollout = find_trained_rollout(name)
    if rollout is None:
        return ""
    licence = f"; {LICENCE}" if rollout == ROLLOUTS[ROLLING_FORCING_FILE] else ""
    return (
        f"{name} has the weights of a rolling video, by its name: choose Rolling Forcing with steps "
        f"{', '.join(map(str, rollout.steps))} (LongLive Options){licence}"
    )
