"""The 1.3B network and the VAE at 832 x 480 on the meta device, and the work of their parts in a long video.

Every part is counted through the functions that production calls, after a block that fills what lasts.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from work_counter import Work, WorkCounter, count_work

from longlive.config import RolloutConfig, RolloutKind
from longlive.model.attention import Attend, attend_with_torch
from longlive.model.causal import CausalWan, TextKeys
from longlive.model.eight_bit import EightBit, EightBitLinear
from longlive.model.fused import Pointwise
from longlive.model.tiny_vae import LatentSpace, TinyVAE
from longlive.model.triton_form import TRITON
from longlive.model.vae import LATENT_CHANNELS, WanVAE
from longlive.model.vae_streams import ResumableDecoder, StreamingEncoder
from longlive.model.wan import TEXT_LEN, Geometry, WanModel
from longlive.rollout.cache_passes import Recache, list_cache_passes
from longlive.rollout.rolling_rollout import RollingRollout
from longlive.rollout.rollout import Rollout
from longlive.session.boundary import Boundary
from longlive.units import PIXEL_FRAMES_PER_FRAME, PIXELS_PER_CELL
from longlive.weights.quantise import is_linear_of_layer

WAN_1_3B = Geometry(dim=1536, ffn_dim=8960, num_heads=12, num_layers=30, freq_dim=256, text_dim=4096)
VAE_WIDTH = 96
HEIGHT, WIDTH = 480, 832  # pixels
CELLS = (HEIGHT // PIXELS_PER_CELL, WIDTH // PIXELS_PER_CELL)
META, BF16 = torch.device("meta"), torch.bfloat16
START = 60  # frames before the block that is counted; the window has long been full


def make_network(
    form: EightBit | None = None, attend: Attend = attend_with_torch, pointwise: Pointwise = TRITON
) -> CausalWan:
    """Make the 1.3B network of an NVIDIA GPU without its weights, in bf16 or with 8-bit linears in its layers."""
    tree = WanModel(WAN_1_3B, device=META, dtype=BF16)
    for name, module in [*tree.named_modules()] if form else []:
        if isinstance(module, nn.Linear) and is_linear_of_layer(f"{name}.weight"):
            parent, _, child = name.rpartition(".")
            scale_shape = () if form is EightBit.FP8_SCALED else (module.out_features, 1)
            setattr(tree.get_submodule(parent), child, EightBitLinear(module, form, scale_shape))
    return CausalWan(
        tree=tree,
        geometry=WAN_1_3B,
        attend=attend,
        kernel="meta",
        device=META,
        dtype=BF16,
        entry_dtype=BF16,
        pointwise=pointwise,
    )


def make_latents(frames: int) -> Tensor:
    return torch.empty(1, frames, LATENT_CHANNELS, *CELLS, device=META, dtype=BF16)


def make_prompt() -> Tensor:
    return torch.empty(1, TEXT_LEN, WAN_1_3B.text_dim, device=META)


def make_rollout(model: CausalWan, config: RolloutConfig) -> Rollout:
    kind = RollingRollout if config.kind is RolloutKind.ROLLING else Rollout
    return kind(model, config, (1, LATENT_CHANNELS, *CELLS))


def denoise(rollout: Rollout, first: int, text: TextKeys, blocks: int, level: int) -> None:
    """Make block number `first`; in a rolling video, take `blocks` of them one level further, the oldest at `level`."""
    config = rollout.config
    start, make_noise = first * config.block, lambda block, step: make_latents(config.block)
    if isinstance(rollout, RollingRollout):
        rollout.roll(start, [make_latents(config.block)] * blocks, level, text, make_noise, first)
    else:
        rollout.denoise(start, text, make_noise, first)


@dataclass(frozen=True, slots=True)
class NetworkWork:
    """The work of the network's parts in a long video."""

    steps: Work  # the denoising steps of a block; in a rolling video the joint pass that finishes it
    clean_pass: Work
    recache: Work  # with the sink kept
    text: Work  # the keys and values of a new prompt

    @property
    def block(self) -> Work:
        return self.steps + self.clean_pass


def count_network(model: CausalWan, config: RolloutConfig) -> NetworkWork:
    """Count the work of the network. Held are the KV cache, the keys of one prompt and what a block leaves behind."""
    counter = WorkCounter()

    def count(compute: Callable[[], object]) -> Work:
        with counter:
            compute()
        return counter.work

    recache, clean, *_ = list_cache_passes(config, [(0, Boundary.CUT), (START, Boundary.RECACHE)], START)
    assert isinstance(recache, Recache)
    finished, window = make_latents(clean.place.frames), make_latents(recache.place.frames)
    with torch.no_grad(), counter:
        rollout, text = make_rollout(model, config), model.read_prompt(make_prompt())
        blocks, level = config.num_in_flight + 1, config.num_in_flight
        rollout.recache(recache.end, window, text, renew=recache.renew)
        denoise(rollout, clean.place.start // config.block, text, blocks, level)
        rollout.clean_pass(clean.place.start, finished, text)
    return NetworkWork(
        clean_pass=count(lambda: rollout.clean_pass(clean.place.start, finished, text)),
        recache=count(lambda: rollout.recache(recache.end, window, text, renew=recache.renew)),
        steps=count(lambda: denoise(rollout, START // config.block, text, blocks, level)),
        text=count(lambda: model.read_prompt(make_prompt())),
    )


def make_vae() -> WanVAE:
    return WanVAE(VAE_WIDTH, device=META, dtype=BF16).requires_grad_(False)


def make_tiny_vae() -> TinyVAE:
    return TinyVAE(LatentSpace.VAE, device=META, dtype=BF16).requires_grad_(False)


def count_decode(decoder: ResumableDecoder, frames: int) -> Work:
    """Count the decoding of `frames` more frames of a video. Held is what the convolutions keep of those before."""
    counter = WorkCounter()
    with counter:
        decoder.push(make_latents(1))
        decoder.push(make_latents(frames))
    with counter:
        decoder.push(make_latents(frames))
    return counter.work


def count_encode(encoder: StreamingEncoder, frames: int) -> Work:
    """Count the encoding of the pixels of `frames` more frames. Held is what the convolutions keep of those before."""
    pixels = torch.empty(1, frames * PIXEL_FRAMES_PER_FRAME, 3, HEIGHT, WIDTH, device=META, dtype=BF16)
    counter = WorkCounter()
    with counter:
        encoder.push(pixels[:, :1])
        encoder.push(pixels)
    with counter:
        encoder.push(pixels)
    return counter.work


def count_text_encoder() -> Work:
    """Count umT5-xxl on a prompt. It needs `transformers`."""
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(
        d_model=WAN_1_3B.text_dim, d_ff=10240, d_kv=64, num_heads=64, num_layers=24, num_decoder_layers=0,
        vocab_size=256384, feed_forward_proj="gated-gelu",
    )  # fmt: skip
    with META:
        encoder, tokens = UMT5EncoderModel(config).to(BF16), torch.zeros(1, TEXT_LEN, dtype=torch.long)
    return count_work(lambda: encoder(tokens))


def count_weight_bytes(network: torch.nn.Module) -> int:
    return sum(weight.nbytes for weight in (*network.parameters(), *network.buffers()))
