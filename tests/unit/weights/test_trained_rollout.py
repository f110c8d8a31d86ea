"""How weights were trained to roll out, by the name of their file; what a user is told of it."""

import pytest

from longlive.config import RolloutConfig
from longlive.weights.load import load_model
from longlive.weights.trained_rollout import find_trained_rollout

SIZES = {"num_heads": 2, "text_len": 8}  # of the tiny network, which its file does not state
FOUR = (1000, 750, 500, 250)
NAMES = [
    ("rolling_forcing_dmd.pt", RolloutConfig.roll()),
    ("Rolling-Forcing_dmd_fp16.safetensors", RolloutConfig.roll()),
    ("longvideo.pt", RolloutConfig.roll(steps=FOUR)),
    ("causal_forcing_longvideo_ema.safetensors", RolloutConfig.roll(steps=FOUR)),
    ("longlive_base.pt", None),
    ("self_forcing_dmd.pt", None),
]


@pytest.mark.parametrize(("name", "rollout"), NAMES, ids=[name for name, _ in NAMES])
def test_the_name_of_a_file_says_how_its_weights_roll_out(name, rollout):
    assert find_trained_rollout(name) == rollout


def test_a_loaded_file_says_which_choice_it_needs_and_under_which_licence(base, save, caplog):
    _, report = load_model(save("rolling_forcing_dmd.pt", {"generator_ema": base}), **SIZES)
    (warning,) = report.warnings
    assert warning.startswith(
        "rolling_forcing_dmd.pt has the weights of a rolling video, by its name: choose Rolling Forcing with steps "
        "1000, 800, 600, 400, 200 (LongLive Options); the licence of Rolling Forcing's weights allows academic use only"
    )
    assert warning in caplog.messages
    assert warning in str(report)
    _, report = load_model(save("longvideo.pt", {"generator": base}), **SIZES)
    (warning,) = report.warnings
    assert warning.endswith("choose Rolling Forcing with steps 1000, 750, 500, 250 (LongLive Options)")
