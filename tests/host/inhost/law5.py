"""Law 5: the rollout equals ComfyUI's own `ar_video` sampler, with the same noise; runs inside a host.

The window is the whole video, there is no sink and one prompt. Ours and the host's compute the timestep sinusoid and
x_0 in different precision; with the host's two functions in ours, both must agree to the last bit.
"""

import json

import comfy.ldm.wan.model
import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.sd
import pytest
import torch
from comfyui_longlive.longlive.config import RolloutConfig
from comfyui_longlive.longlive.model import causal
from comfyui_longlive.longlive.rollout import rollout
from comfyui_longlive.longlive.rollout.noise import Noise
from comfyui_longlive.longlive.rollout.schedule import Schedule
from comfyui_longlive.nodes.host.model import as_causal_model, to_latent
from model_files import GEOMETRY, make_dit_weights
from torch import Tensor

SEED, BLOCK, NUM_BLOCKS = 11, 3, 4
SHAPE = (1, 16, BLOCK * NUM_BLOCKS, 8, 12)  # B C F h w, the host's order
CONFIG = RolloutConfig(window=BLOCK * NUM_BLOCKS, sink=0, block=BLOCK)
RENOISINGS = len(CONFIG.steps) - 1  # draws of a block


def check_law5() -> dict[str, float]:
    """Return the largest difference, once with our functions and once with the two of the host."""
    patcher = load_causal_patcher()
    prompt = torch.randn(1, GEOMETRY.text_len, GEOMETRY.text_dim, generator=torch.Generator().manual_seed(1)) / 4
    theirs, noise = sample_in_host(patcher, prompt)
    ours = sample_by_rollout(patcher, prompt, noise)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(causal, "make_sinusoid", lambda t, width: comfy.ldm.wan.model.sinusoidal_embedding_1d(width, t))
        patch.setattr(rollout, "convert_flow_to_clean", lambda noisy, flow, sigma: noisy - flow * sigma)
        swapped = sample_by_rollout(patcher, prompt, noise)
    return {
        "size": theirs.abs().max().item(),
        "as they are": (theirs - ours).abs().max().item(),
        "in one precision": (theirs - swapped).abs().max().item(),
    }


def load_causal_patcher():
    """Load the tiny network as the host's own causal model, which its metadata asks for."""
    config = {"transformer": {"causal_ar": True}}
    patcher = comfy.sd.load_diffusion_model_state_dict(make_dit_weights(), metadata={"config": json.dumps(config)})
    assert type(patcher.model.diffusion_model).__name__ == "CausalWanModel"
    assert patcher.model.get_dtype_inference() == torch.float32
    return patcher


def sample_in_host(patcher, prompt: Tensor) -> tuple[Tensor, Noise]:
    """Sample as SamplerCustomAdvanced does with SamplerARVideo; return the latents and the noise that was drawn."""
    initial_BCFHW = comfy.sample.prepare_noise(torch.zeros(SHAPE), SEED)
    drawn: list[Tensor] = []
    randn_like = torch.randn_like
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn_like", lambda like: drawn.append(randn_like(like)) or drawn[-1])
        latents_BCFHW = comfy.sample.sample_custom(
            patcher,
            initial_BCFHW,
            1.0,
            comfy.samplers.ksampler("ar_video", {"num_frame_per_block": BLOCK}),
            torch.cat([list_sigmas(), torch.zeros(1)]),
            [[prompt, {}]],
            [[prompt, {}]],
            torch.zeros(SHAPE),
            disable_pbar=True,
            seed=SEED,
        )

    def recorded(block: int, step: int) -> Tensor:
        first = initial_BCFHW[:, :, block * BLOCK : (block + 1) * BLOCK]
        return (drawn[block * RENOISINGS + step - 1] if step else first).transpose(1, 2)

    assert len(drawn) == NUM_BLOCKS * RENOISINGS
    return latents_BCFHW, recorded


def list_sigmas() -> Tensor:
    """List the released noise levels: 1, .9375, .8333, .625."""
    schedule = Schedule(CONFIG.shift)
    return schedule.sigma(schedule.warp(CONFIG.steps))


def sample_by_rollout(patcher, prompt: Tensor, noise: Noise) -> Tensor:
    """Sample with our rollout from the same noise; the result is in the host's space and order of axes."""
    comfy.model_management.load_models_gpu([patcher])
    model = as_causal_model(patcher)
    video = rollout.Rollout(model, CONFIG, (SHAPE[0], SHAPE[1], *SHAPE[-2:]))
    text, blocks = model.read_prompt(prompt), []
    for block in range(NUM_BLOCKS):
        start = block * BLOCK
        blocks.append(video.denoise(start, text, noise, block))
        video.clean_pass(start, blocks[-1], text)
    return to_latent(patcher, torch.cat(blocks, dim=1))["samples"]
