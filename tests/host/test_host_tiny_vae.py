"""A tiny VAE in every ComfyUI that the pack supports: by its loader, in Decode, and as a preview."""

from pathlib import Path

import av
import numpy as np
import pytest
import torch
from graphs import compute_expected, make_node
from hosts import HOSTS
from inside import call_inside
from safetensors.torch import save_file
from tiny_vae_weights import make_tiny_vae_weights
from videos import make_video_graph

from longlive.model.tiny_vae import LatentSpace, TinyDecoder, TinyVAE
from longlive.video.render import VideoRenderer, render_video
from longlive.video.writer import VideoWriter

FILES = {  # as VAELoader lists them: by folder, name and precision; and the latents that each takes
    "taew2_1.safetensors": ("vae", torch.float16, LatentSpace.NETWORK),
    "lighttaew2_1.safetensors": ("vae_approx", torch.float32, LatentSpace.VAE),
}


@pytest.mark.parametrize("version", HOSTS, ids=lambda host: host.version)
def test_a_tiny_vae_decodes_in_pieces_from_the_right_latents(version):
    checks = (
        "check_a_file_in_float16_is_not_scaled_for_another_model",
        "check_the_latent_space",
        "check_catching_up",
        "check_out_of_memory",
        "check_refusals",
        "check_previews",
    )
    assert call_inside(version, "tiny_vae", "check_pieces", *checks)[0]


def read_frames(path: Path) -> np.ndarray:
    with av.open(path) as video:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]).astype(int)


@pytest.mark.parametrize("name", FILES)
def test_the_loader_of_the_host_and_decode_make_the_video_that_longlive_makes_alone(host, tmp_path, name):
    folder, dtype, space = FILES[name]
    (host.models / folder).mkdir(exist_ok=True)
    weights = make_tiny_vae_weights(dtype)
    save_file(weights, host.models / folder / name)
    graph = make_video_graph("a green ring stays still by day", seed=21)
    graph["vae"] = make_node("VAELoader", vae_name=name)
    graph["decode"]["inputs"]["vae"] = ["vae", 0]
    expected = {}
    for chosen in LatentSpace:
        decoder = TinyDecoder(TinyVAE.of_weights(weights, chosen, dtype=torch.float32))
        with VideoWriter(tmp_path / f"{chosen}.mp4") as writer:
            render_video(compute_expected(graph, "timeline").blocks, VideoRenderer(decoder, writer))
        expected[chosen] = read_frames(tmp_path / f"{chosen}.mp4")

    def decode(**choice: str) -> np.ndarray:
        graph["decode"]["inputs"] |= choice
        [file] = host.run(graph).outputs["decode"]["images"]
        return read_frames(host.output / file["subfolder"] / file["filename"])

    other = next(iter(set(LatentSpace) - {space}))
    assert np.abs(expected[space] - expected[other]).mean() > 3
    assert np.abs(decode() - expected[space]).mean() < 0.5
    assert np.abs(decode(latent_space=other.value) - expected[other]).mean() < 0.5
