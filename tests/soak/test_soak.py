"""A share of `make soak`."""

import pytest
import soak


@pytest.mark.parametrize(("part", "count"), [("kills", 2), ("interrupts", 2), ("hour", 40), ("store", 1), ("disks", 2)])
def test_runs_that_are_stopped_or_starved_give_the_undisturbed_result(tmp_path, part, count):
    attack, _ = soak.PARTS[part]
    what, times, outcome = attack(tmp_path, count, soak.SEED)
    assert times == count
    assert what
    assert outcome
