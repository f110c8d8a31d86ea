"""`longlive render --speed`: exact by default, and blocks of another speed are never mixed with exact ones."""

import torch
from kitchen_stand_in import install_kitchen

from longlive.cli.main import main
from longlive.model import speed
from longlive.model.fused import is_onednn_usable
from longlive.session.session_file import load_session

SCRIPT = "6f | a red fox\n"


def read_latents(folder, name: str) -> torch.Tensor:
    return load_session(folder / f"{name}.session.safetensors").latents()


def test_fast_rounds_elsewhere_and_has_blocks_of_its_own(render, tmp_path, caplog):
    assert render(SCRIPT, "usual.mp4") == render(SCRIPT, "exact.mp4", "--speed", "exact") == 0
    assert len([*(tmp_path / "blocks").rglob("*.safetensors")]) == 2
    assert "does without" not in caplog.text
    assert render(SCRIPT, "fast.mp4", "--speed", "fast") == 0
    usual, exact, fast = (read_latents(tmp_path, name) for name in ("usual", "exact", "fast"))
    assert torch.equal(usual, exact)
    torch.testing.assert_close(fast, exact, rtol=1e-4, atol=1e-4)
    is_joined = is_onednn_usable(torch.float32)
    assert torch.equal(fast, exact) != is_joined
    assert len([*(tmp_path / "blocks").rglob("*.safetensors")]) == 2 + 2 * is_joined
    assert "fast does without: 8-bit attention cannot run here (cpu" in caplog.text


def test_fastest_computes_whole_weights_in_8_bits_where_that_is_faster(render, tmp_path, weights, monkeypatch, caplog):
    install_kitchen(monkeypatch)
    assert render(SCRIPT, "slow.mp4", "--speed", "fastest") == 0
    assert "fastest does without: INT8 linears, because comfy-kitchen has no kernels for them here" in caplog.text
    monkeypatch.setattr(speed, "find_int8_obstacle", lambda _: "")
    assert render(SCRIPT, "fastest.mp4", "--speed", "fastest") == 0
    slow, fastest = (read_latents(tmp_path, name) for name in ("slow", "fastest"))
    assert 0 < (fastest - slow).norm() < 0.02 * slow.norm()

    caplog.clear()
    rounded = tmp_path / "rounded.safetensors"
    assert main(["quantize", str(weights), str(rounded), "--format", "fp8-scaled"]) == 0
    weights.write_bytes(rounded.read_bytes())
    assert render(SCRIPT, "file.mp4", "--speed", "fastest", "--store", str(tmp_path / "other")) == 0
    assert "does not multiply float8" in caplog.text  # the form of the file
