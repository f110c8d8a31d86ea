"""The parts of the reference that a replay computes by itself."""

import pytest

from longlive.config import MAX_STEP
from longlive.reference.part_runs import compute_training_weights
from longlive.rollout.schedule import Schedule


def test_training_weights_are_a_bell_of_mean_one():
    schedule = Schedule(5.0)
    weights = compute_training_weights(schedule)
    assert weights.min() == 0
    assert weights.mean().item() == pytest.approx(1, abs=1e-4)
    middle = (schedule.timesteps - MAX_STEP / 2).abs().argmin()
    assert weights.argmax() == middle
