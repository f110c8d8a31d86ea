"""`longlive render --vae FILE`: a tiny VAE, or the whole one, in place of the pipeline's."""

import pytest
import torch
from render_runs import count_pixel_frames, make_command
from safetensors.torch import save_file
from tiny_vae_weights import make_tiny_vae_weights

from longlive.cli.main import main
from longlive.session.session_file import load_session

SCRIPT = "3f | a red fox\n3f cut | the snow\n"


@pytest.fixture(scope="module")
def tiny_vae(tmp_path_factory):
    path = tmp_path_factory.mktemp("vae") / "taew2_1.safetensors"
    save_file(make_tiny_vae_weights(torch.float16), path)
    return path


def test_a_tiny_vae_decodes_the_same_latents_to_another_video_and_resumes_to_the_byte(render, tmp_path, tiny_vae):
    assert render("3f | a red fox\n", "tiny.mp4", "--vae", str(tiny_vae)) == 0
    assert render(SCRIPT, "tiny.mp4", "--vae", str(tiny_vae)) == 0
    assert render(SCRIPT, "again.mp4", "--vae", str(tiny_vae), "--store", str(tmp_path / "other")) == 0
    assert render(SCRIPT, "scaled.mp4", "--vae", str(tiny_vae), "--latent-space", "vae") == 0
    assert render(SCRIPT, "whole.mp4") == 0
    tiny, again, scaled, whole = (
        (tmp_path / f"{name}.mp4").read_bytes() for name in ("tiny", "again", "scaled", "whole")
    )
    assert count_pixel_frames(tmp_path / "tiny.mp4") == 4 * 6 - 3
    assert tiny == again
    assert len({tiny, scaled, whole}) == 3
    tiny, whole = (load_session(tmp_path / f"{name}.session.safetensors").latents() for name in ("tiny", "whole"))
    assert torch.equal(tiny, whole)


def test_the_whole_vae_may_come_from_another_place(render, tmp_path, pipeline):
    file = pipeline / "vae" / "diffusion_pytorch_model.safetensors"
    assert render("3f | a red fox\n", "other.mp4", "--vae", str(file)) == 0
    assert render("3f | a red fox\n", "usual.mp4") == 0
    assert (tmp_path / "other.mp4").read_bytes() == (tmp_path / "usual.mp4").read_bytes()


def test_options_that_do_not_fit_are_refused_before_anything_is_computed(
    render, tmp_path, tiny_vae, weights, pipeline, caplog
):
    unnamed = tmp_path / "tiny.safetensors"
    unnamed.write_bytes(tiny_vae.read_bytes())
    assert render(SCRIPT, "x.mp4", "--vae", str(unnamed)) == 1
    assert "give the latent space: network or vae" in caplog.text
    assert render(SCRIPT, "x.mp4", "--latent-space", "vae") == 1
    assert "vae is not a tiny VAE; leave the latent space out" in caplog.text
    script = make_command(tmp_path, weights, pipeline, "x.mp4")[1]
    miniature = ["render", script, "--miniature", "-o", str(tmp_path / "x.mp4")]
    assert main([*miniature, "--vae", str(tiny_vae)]) == 1
    assert "--vae belongs to real weights; the miniature has its own VAE" in caplog.text
    assert not (tmp_path / "blocks").exists()
    assert not (tmp_path / "x.mp4").exists()
