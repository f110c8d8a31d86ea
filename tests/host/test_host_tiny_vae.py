"""A tiny VAE in every ComfyUI that the pack supports: by its loader, in Decode, and as a preview."""

import functools
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import numpy as np
import pytest
import torch
from graphs import compute_expected, make_node
from host_messages import Graph
from hosts import HOSTS
from inside import call_inside
from safetensors.torch import save_file
from tiny_vae_weights import make_tiny_vae_weights
from videos import make_video_graph

from longlive.model.tiny_vae import LatentSpace, TinyDecoder, TinyVAE
from longlive.session.session import Session
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


@functools.cache
def sample_alone() -> Session:
    return compute_expected(make_graph(), "timeline")


def make_graph() -> Graph:
    return make_video_graph("a green ring stays still by day", seed=21)


@functools.cache
def render_alone(dtype: torch.dtype, space: LatentSpace) -> np.ndarray:
    """Make the pixels of the video by `longlive` alone, with weights in `dtype`."""
    decoder = TinyDecoder(TinyVAE.of_weights(make_tiny_vae_weights(dtype), space, dtype=torch.float32))
    with TemporaryDirectory() as folder:
        path = Path(folder, "alone.mp4")
        with VideoWriter(path) as writer:
            render_video(sample_alone().blocks, VideoRenderer(decoder, writer))
        return read_frames(path)


def read_frames(path: Path) -> np.ndarray:
    with av.open(path) as video:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]).astype(int)


@pytest.mark.parametrize("name", FILES)
def test_the_loader_of_the_host_and_decode_make_the_video_that_longlive_makes_alone(host, name):
    folder, dtype, space = FILES[name]
    (host.models / folder).mkdir(exist_ok=True)
    save_file(make_tiny_vae_weights(dtype), host.models / folder / name)
    graph = make_graph()
    graph["vae"] = make_node("VAELoader", vae_name=name)
    graph["decode"]["inputs"]["vae"] = ["vae", 0]
    expected = {chosen: render_alone(dtype, chosen) for chosen in LatentSpace}

    def decode(**choice: str) -> np.ndarray:
        graph["decode"]["inputs"] |= choice
        [file] = host.run(graph).outputs["decode"]["images"]
        return read_frames(host.output / file["subfolder"] / file["filename"])

    other = next(iter(set(LatentSpace) - {space}))
    assert np.abs(expected[space] - expected[other]).mean() > 3
    assert np.abs(decode() - expected[space]).mean() < 0.5
    assert np.abs(decode(latent_space=other.value) - expected[other]).mean() < 0.5
