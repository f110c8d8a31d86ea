"""The renderer of a session: the VAE that ComfyUI loaded, the video or film that grows, and the store of fragments.

Every node that shows a session opens it here, so that all find the fragments of each other.
"""

import comfy.sd

from ...longlive.session.session import Session
from ...longlive.video.film import Film
from ...longlive.video.render import FragmentWriter, VideoRenderer
from .fallback_decoder import FallbackDecoder
from .model import Model
from .sampling import open_fragment_store
from .speed import choose_vae
from .tiny_vae import LatentSpaceChoice


def open_renderer(
    model: Model,
    vae: comfy.sd.VAE,
    session: Session,
    writer: FragmentWriter,
    latent_space: str = LatentSpaceChoice.AUTO,
) -> VideoRenderer:
    """Open a renderer for a session. Raises WeightsError for a VAE that cannot decode it.

    A film is made beside the sampling, so a thread encodes it where the device is not the CPU, which encodes.
    """
    vae, latent_space = choose_vae(model, vae, latent_space)
    decoder = FallbackDecoder(vae, latent_space, size=(session.height, session.width))
    beside = isinstance(writer, Film) and vae.device.type != "cpu"
    return VideoRenderer(decoder, writer, open_fragment_store(), beside=beside)
