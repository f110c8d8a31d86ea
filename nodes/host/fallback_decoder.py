"""A decoder that falls back to smaller passes and to tiles when ComfyUI runs out of memory."""

import logging
from collections.abc import Callable, Sequence

import comfy.model_management
import comfy.sd
import torch
from torch import Tensor

from ...longlive.errors import VideoError
from ...longlive.model.vae_streams import ResumableDecoder, StreamingDecoder, TiledDecoder
from .host_network import HostDecoder
from .shared_vae import choose_at_once
from .tiny_vae import LatentSpaceChoice, create_tiny_decoder, is_host_tiny_vae
from .vae import PAIRS, copy_vae, create_decoder, refuse_other_vaes

log = logging.getLogger(__name__)

SMALLER_PASSES = (
    "out of memory while decoding: LongLive continues in smaller passes, which take longer; the pictures are the same"
)


class FallbackDecoder:
    """Decodes a video; when memory runs out, in smaller passes, and then in tiles.

    Pixels already returned stay valid: the next decoder continues where the one before it failed. Smaller passes
    differ from larger ones by rounding only (7e-6 in float32).
    """

    def __init__(
        self,
        vae: comfy.sd.VAE,
        latent_space: str = LatentSpaceChoice.AUTO,
        *,
        size: tuple[int, int] | None = None,
    ) -> None:
        """`size` is the height and width of the video in pixels: so many latents pass at once as memory allows."""
        is_tiny = is_host_tiny_vae(vae)
        decoder = create_tiny_decoder(vae, latent_space) if is_tiny else create_whole_decoder(vae, size)
        self.vae, self._identity = vae, decoder.identity
        self.decoder: ResumableDecoder | None = decoder  # None after it ran out of memory
        self._seen: list[Tensor] = []
        self._latent_space = latent_space  # that a tiny VAE takes
        tiny, whole = (self._create_small_decoder,), (self._create_frame_decoder, self._create_tiled_decoder)
        self._fallbacks = iter(tiny if is_tiny else whole)

    @property
    def identity(self) -> str:
        """The identity of the first decoder, also for smaller passes: they differ by rounding only. Tiles do not."""
        return self.decoder.identity if isinstance(self.decoder, TiledDecoder) else self._identity

    def catch_up(self, blocks: Sequence[Tensor]) -> None:
        def catch_up_only(decoder: ResumableDecoder) -> Tensor:
            decoder.catch_up(blocks)
            return torch.empty(0)

        self._try(catch_up_only, catch_up_only)
        self._seen = list(blocks)

    def push(self, latents_BFCHW: Tensor) -> Tensor:
        decoded, waiting = self._split_seen()

        def retry(decoder: ResumableDecoder) -> Tensor:
            decoder.catch_up(decoded)
            return decoder.push(torch.cat([*waiting, latents_BFCHW], dim=1))

        pixels_BFCHW = self._try(lambda decoder: decoder.push(latents_BFCHW), retry)
        self._seen.append(latents_BFCHW)
        return pixels_BFCHW

    def flush(self) -> Tensor:
        decoded, waiting = self._split_seen()

        def retry(decoder: ResumableDecoder) -> Tensor:
            decoder.catch_up(decoded)
            return torch.cat([*map(decoder.push, waiting), decoder.flush()], dim=1)

        self._seen = []
        return self._try(lambda decoder: decoder.flush(), retry)

    def _split_seen(self) -> tuple[list[Tensor], list[Tensor]]:
        """Split the latents into those whose pixels were returned and those that wait for others."""
        waiting = self.decoder.waiting_BFCHW if isinstance(self.decoder, HostDecoder) else None
        if waiting is None or not waiting.shape[1]:
            return list(self._seen), []
        *decoded, last = self._seen
        return [*decoded, last[:, : -waiting.shape[1]]], [waiting]

    def _try(self, action: Callable[[ResumableDecoder], Tensor], retry: Callable[[ResumableDecoder], Tensor]) -> Tensor:
        while True:
            try:
                if self.decoder is None:
                    self.decoder, action = self._create_fallback(), retry
                return action(self.decoder)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
            self._make_room()  # outside of `except`: the error would keep the tensors of the failed pass alive

    def _make_room(self) -> None:
        self.decoder = None
        comfy.model_management.unload_all_models()
        comfy.model_management.soft_empty_cache()

    def _create_fallback(self) -> ResumableDecoder:
        for create in self._fallbacks:
            return create()
        raise VideoError(
            "there is not enough memory to decode this video, even in tiles; its latents are not lost: connect "
            "LongLive Session to Latent and VAE Decode (Tiled) with small tiles, or free memory and run again"
        )

    def _create_small_decoder(self) -> ResumableDecoder:
        log.warning(SMALLER_PASSES)
        return create_tiny_decoder(self.vae, self._latent_space, at_once=1)

    def _create_frame_decoder(self) -> ResumableDecoder:
        log.warning(SMALLER_PASSES)
        return StreamingDecoder(copy_vae(self.vae), at_once=1, frames_at_once=1)

    def _create_tiled_decoder(self) -> ResumableDecoder:
        log.warning("out of memory while decoding: LongLive continues in tiles, whose edges may be faintly visible")
        return TiledDecoder(copy_vae(self.vae))


def create_whole_decoder(vae: comfy.sd.VAE, size: tuple[int, int] | None) -> ResumableDecoder:
    refuse_other_vaes(vae)
    return create_decoder(vae, at_once=choose_at_once(vae, *size) if size else PAIRS)


def is_out_of_memory(error: Exception) -> bool:
    """Whether ComfyUI takes an error for a lack of memory."""
    management = comfy.model_management
    if isinstance(error, management.InterruptProcessingException):
        return False
    if management.OOM_EXCEPTION is Exception:  # a device without an error class for it
        return "memory" in str(error).lower()
    known = getattr(management, "is_oom", None)
    return known(error) if known else isinstance(error, management.OOM_EXCEPTION)
