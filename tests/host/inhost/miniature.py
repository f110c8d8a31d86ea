"""Checks that stock loaders read the miniature's files, and that our node refuses damaged ones; run inside a host.

The stock nodes are called as a graph calls them, on a models folder with the files.
"""

import tempfile
from pathlib import Path

import comfy.model_management
import folder_paths
import pytest
import torch
from comfyui_longlive.longlive.config import RolloutConfig
from comfyui_longlive.longlive.errors import WeightsError
from comfyui_longlive.longlive.miniature import files
from comfyui_longlive.longlive.model.vae import denormalise
from comfyui_longlive.longlive.model.vae_streams import decode
from comfyui_longlive.longlive.rollout.rollout import Rollout
from comfyui_longlive.longlive.weights.weights_file import read_weights_file
from comfyui_longlive.nodes.host.miniature_clip import MiniatureCLIP
from comfyui_longlive.nodes.models import MiniatureLoader

from nodes import CLIPTextEncode, UNETLoader, VAELoader

PROMPT = "a red ring moves left at night"
FRAMES, CELLS = 3, 8  # a block, at 64 x 64 pixels
TIMESTEPS = (1000.0, 625.0, 0.0)


def check_stock_loaders() -> dict[str, float]:
    """Raise unless stock loaders load every tensor of the files; return the largest differences from our results.

    The flow is that of a video's first block, for which a causal model attends the same frames as ComfyUI's forward.
    """
    for folder in ("diffusion_models", "vae"):
        folder_paths.add_model_folder_path(folder, str(files.WEIGHTS_FOLDER))
    [model] = UNETLoader().load_unet(files.DIT.name, "default")
    [vae] = VAELoader().load_vae(files.VAE.name)
    network = model.model.diffusion_model
    for loaded, path in ((network.state_dict(), files.DIT), (vae.get_sd(), files.VAE)):
        tensors = read_weights_file(path).tensors
        assert loaded.keys() == tensors.keys(), loaded.keys() ^ tensors.keys()
        assert all(torch.equal(loaded[name], tensors[name].to(loaded[name])) for name in tensors)
    assert model.model.get_dtype_inference() == vae.vae_dtype == torch.float32

    ours = files.load_miniature()
    embedding = ours.text(PROMPT)
    x_BFCHW = torch.randn(1, FRAMES, 16, CELLS, CELLS, generator=torch.Generator().manual_seed(1))
    comfy.model_management.load_models_gpu([model])
    difference = {}
    with torch.no_grad():
        for timestep in TIMESTEPS:
            theirs_BCFHW = network(x_BFCHW.transpose(1, 2), torch.tensor([timestep]), embedding)
            flow_BFCHW = compute_flow(ours.model, x_BFCHW, timestep, embedding)
            difference[f"flow at {timestep}"] = measure_distance(theirs_BCFHW.transpose(1, 2), flow_BFCHW)
    pixels_FHWC = vae.decode(denormalise(x_BFCHW).transpose(1, 2))[0]
    difference["pixels"] = measure_distance(
        2 * pixels_FHWC - 1, decode(ours.vae, x_BFCHW)[0].movedim(1, -1).clamp(-1, 1)
    )
    return difference


def compute_flow(model, x_BFCHW: torch.Tensor, timestep: float, embedding: torch.Tensor) -> torch.Tensor:
    """Compute the flow of a video's first block as the rollout does."""
    video = Rollout(model, RolloutConfig(), (1, 16, CELLS, CELLS))
    place = video.window.place_block(0, FRAMES)
    modulations = model.make_modulations(torch.full(x_BFCHW.shape[:2], timestep))
    rotation = model.make_rotation(place, model.geometry.grid(CELLS, CELLS))
    return model.forward(x_BFCHW, model.read_prompt(embedding), video.cache, place, modulations, rotation)


def measure_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape, (a.shape, b.shape)
    assert b.abs().max() > 0
    return (a - b).abs().max().item()


def check_clip() -> None:
    """Raise unless the stock node can encode with our CLIP and with a clone of it."""
    clip = MiniatureCLIP()
    for encoder in (clip, clip.clone()):
        [[[embedding, settings]]] = CLIPTextEncode().encode(encoder, PROMPT)
        assert embedding.shape == (1, 512, 4096)
        assert torch.equal(embedding, files.load_miniature().text(PROMPT))
        assert settings == {"pooled_output": None}


def check_damaged_files_are_refused() -> None:
    """Raise unless missing, truncated and other files are refused with our message."""
    whole = files.DIT.read_bytes()
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path = Path(folder) / files.DIT.name
        patch.setattr(files, "DIT", path)
        for content, told in (
            (None, "is missing; it is part of the pack, so install the pack again"),
            (b"version https://git-lfs.github.com/spec/v1", "is a Git LFS pointer instead of the weights; run"),
            (whole[: len(whole) // 2], "is truncated or damaged"),
            (files.VAE.read_bytes(), "expected LongLive or Wan2.1 text-to-video weights"),
        ):
            if content is not None:
                path.write_bytes(content)
            with pytest.raises(WeightsError, match=told):
                MiniatureLoader.execute()
