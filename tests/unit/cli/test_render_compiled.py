"""`longlive render --compile`: compiled blocks where there is a compiler, the usual ones where there is none."""

import logging
from functools import partial

import pytest
import torch

from longlive.cli import video_options
from longlive.model.compiled import Backend, LayerCompiler, compile_model
from longlive.session.session import Session
from longlive.session.session_file import load_session

SCRIPT = "15f | a red fox\n"
SMALL_WINDOW = ("--window", "6")  # which rolls in the third block


@pytest.fixture
def make_video(render, tmp_path, monkeypatch, caplog):
    """Render a video with a compiler, or without."""
    caplog.set_level(logging.INFO, "longlive")

    def make_video(backend: Backend | None) -> Session:
        if backend:
            monkeypatch.setattr(video_options, "compile_model", partial(compile_model, backend=backend))
        assert render(SCRIPT, "video.mp4", *SMALL_WINDOW, *["--compile"] * bool(backend)) == 0
        return load_session(tmp_path / "video.session.safetensors")

    return make_video


def test_compiled_blocks_are_stored_apart(make_video, tmp_path, monkeypatch, caplog):
    runs, run = [], LayerCompiler.run
    monkeypatch.setattr(LayerCompiler, "run", lambda *args: runs.append(1) or run(*args))
    usual, compiled = make_video(None), make_video("eager")
    assert runs
    torch.testing.assert_close(compiled.latents(), usual.latents(), rtol=0, atol=1e-6)
    assert "the network is compiled by eager" in caplog.text
    assert f"compiled-eager-{torch.__version__}" in caplog.text
    assert len([*(tmp_path / "blocks").rglob("*.safetensors")]) == 2 * 5


def test_without_a_compiler_the_blocks_are_the_usual_ones(make_video, tmp_path, caplog):
    def missing(graph, inputs):
        raise RuntimeError("no C++ compiler")

    make_video(None)
    make_video(missing)
    assert "the network is not compiled: missing does not work here (RuntimeError: no C++ compiler)" in caplog.text
    assert len([*(tmp_path / "blocks").rglob("*.safetensors")]) == 5
