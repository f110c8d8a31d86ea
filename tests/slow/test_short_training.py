"""A short training from nothing reaches what the model card says (longlive/miniature/weights/README.md)."""

import json
import sys

import pytest
from patience import run_patiently

PSNR = 20.0  # dB of the VAE, at least
ERROR = 0.7  # of x0 in first blocks, at most; of an untrained network it is above 1


@pytest.mark.slow
def test_a_short_training_reaches_what_the_card_says(tmp_path):
    command = [sys.executable, "-m", "longlive.miniature.training", "--scale", "0.03", "--folder", str(tmp_path)]
    run = run_patiently(command, "a short training")
    assert run.returncode == 0, run.stderr
    decibels = float(run.stderr.split("VAE on clips it has not seen: ")[1].split(" dB")[0])
    errors = [json.loads(line)["first"] for line in (tmp_path / "dit.jsonl").read_text().splitlines()]
    assert decibels >= PSNR
    assert errors[-1] <= ERROR
    assert (tmp_path / "longlive_miniature.safetensors").exists()
    assert (tmp_path / "dit.png").exists()
