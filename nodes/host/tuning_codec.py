"""The decoder and the encoder of a tuning, over the VAE that ComfyUI loaded."""

import comfy.sd
import torch
from torch import Tensor

from ...longlive.model.vae_streams import VideoDecoder, VideoEncoder
from ...longlive.tuning.streaming import Codec
from .vae import create_decoder, create_encoder


def create_codec(vae: comfy.sd.VAE) -> Codec:
    """Create both for a tuning, which may be interrupted between two steps, never within one."""
    decoder, encoder = create_decoder(vae, interruptible=False), create_encoder(vae, interruptible=False)
    return Codec(lambda: GraphSafeStream(decoder), lambda: GraphSafeStream(encoder))


class GraphSafeStream:
    """Runs a stream in inference mode, as ComfyUI does, and returns copies that a graph may use."""

    def __init__(self, stream: VideoDecoder | VideoEncoder) -> None:
        self.stream = stream

    def push(self, video_BFCHW: Tensor) -> Tensor:
        with torch.inference_mode():
            made_BFCHW = self.stream.push(video_BFCHW)
        return made_BFCHW.clone()

    def flush(self) -> Tensor:
        with torch.inference_mode():
            made_BFCHW = self.stream.flush()
        return made_BFCHW.clone()
