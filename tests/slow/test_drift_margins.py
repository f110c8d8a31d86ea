"""The drift meter on videos of the miniature: 32 clean ones, and ten of them with each fault."""

import pytest
from drift_margins import NUM_BROKEN, NUM_CLEAN, find_faults, run_calibration


@pytest.mark.slow
def test_no_clean_video_is_called_faulty_and_every_fault_is_found():
    clean, broken = run_calibration()
    assert len(clean) == NUM_CLEAN
    assert not any(map(find_faults, clean))
    for fault, videos in broken.items():
        assert len(videos) == NUM_BROKEN
        assert all(fault in find_faults(blocks) for blocks in videos)
