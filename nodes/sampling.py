"""Sampling inside ComfyUI: memory announced, weights loaded, progress and previews shown, its interrupt obeyed."""

import functools
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import comfy.model_management
import comfy.utils
import folder_paths
import latent_preview
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..longlive.model.causal import CausalWan
from ..longlive.rollout import Pass, PassKind
from ..longlive.sampler import TEXTS_HELD, Sampler, memory_bytes, text_bytes
from ..longlive.session import Session
from ..longlive.store import Store, store_of
from .host import causal_model, ignored, on_device, to_host
from .identity import opaque
from .warm import slot

log = logging.getLogger(__name__)

STORE_BYTES = 4 << 30  # 90 minutes at 832 x 480
ACTIVATIONS = 26  # tensors [tokens, width] that a pass over a whole window holds at most: 16 counted, and work space


@contextmanager
def sampling(patcher: ModelPatcher, session: Session, total_blocks: int) -> Iterator[Sampler]:
    """A sampler for `total_blocks` more blocks: memory announced, weights loaded, progress, previews and interrupt.

    Nothing is loaded before a block has to be computed. A memory stays warm for the next node after a good end alone.
    """
    try:
        patcher.pre_run()  # before the key is taken: a node may change there how the MODEL computes
        with on_device(patcher.load_device), sampler_of(patcher, session, total_blocks) as sampler:
            yield sampler
            slot.keep(patcher, sampler.hand_over())
    except BaseException:
        slot.clear()
        raise
    finally:
        patcher.cleanup()
        comfy.model_management.soft_empty_cache()


def sampler_of(patcher: ModelPatcher, session: Session, total_blocks: int) -> Sampler:
    """The sampler of a MODEL whose run has begun; warns of what the MODEL carries and a session has no place for."""
    model, unknown, unused = causal_model(patcher), opaque(patcher), ignored(patcher)
    if unused:
        log.warning("the MODEL carries %s, which a session cannot honour; ignored", " and ".join(unused))
    if unknown:
        log.warning("the MODEL carries %s: blocks made with it are not stored", " and ".join(unknown))
    progress = Progress(patcher, total_blocks, len(session.config.steps))
    return Sampler(
        model,
        store=None if unknown else block_store(),
        watch=progress.step,
        found=progress.block,
        take=functools.partial(slot.take, patcher),
        prepare=functools.partial(make_room, patcher, model, session),
    )


def make_room(patcher: ModelPatcher, model: CausalWan, session: Session, held: int) -> None:
    """Announce keys, values and activations to ComfyUI's memory management, and load the weights.

    Of the keys and values `held` bytes are there already.
    """
    config, (_, _, channels, height, width) = session.config, session.block_shape
    rows, columns = model.geometry.grid(height, width)
    keys = memory_bytes(model, config, session.height, session.width)
    if not held:
        log.info("a window of %d frames takes %.0f MB of keys and values", config.window, keys / 1e6)
    # Without flash attention the host's estimate is for one that holds all scores at once, which none of its own does.
    most = ACTIVATIONS * config.window * rows * columns * model.geometry.dim * model.dtype.itemsize
    work = min(patcher.model.memory_required([1, channels, config.window, height, width]), most)
    needed = keys - held + work + TEXTS_HELD * text_bytes(model)
    comfy.model_management.load_models_gpu([patcher], memory_required=needed)


class Progress:
    """Tells ComfyUI of each denoising step, with a picture of the newest frame, and obeys its interrupt."""

    def __init__(self, patcher: ModelPatcher, blocks: int, steps: int) -> None:
        self.patcher, self.steps = patcher, steps  # of a block
        self.bar = comfy.utils.ProgressBar(blocks * steps)
        self.previewer = latent_preview.get_previewer(patcher.load_device, patcher.model.latent_format)

    def step(self, done: Pass) -> None:
        """A pass is over."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        if done.kind is not PassKind.DENOISE:
            return
        picture = None
        if self.previewer and done.clean is not None:
            picture = self.previewer.decode_latent_to_preview_image("JPEG", to_host(done.clean[:, -1:]))
            if self.patcher not in comfy.model_management.loaded_models():  # a preview by a VAE took its room
                comfy.model_management.load_models_gpu([self.patcher])
        self.bar.update_absolute(self.bar.current + 1, preview=picture)

    def block(self) -> None:
        """A block was found in the store."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        self.bar.update_absolute(self.bar.current + self.steps)


def counted(blocks: Sequence[Tensor]) -> Iterator[Tensor]:
    """Blocks in order, while ComfyUI shows how many are done and may interrupt."""
    bar = comfy.utils.ProgressBar(len(blocks))
    for block in blocks:
        comfy.model_management.throw_exception_if_processing_interrupted()
        yield block
        bar.update(1)


def block_store() -> Store:
    """Finished blocks on disk, so that an edit, an interrupt or a crash costs only what is new.

    Nothing is held in memory: ComfyUI's own cache does that, and frees it when told to.
    """
    return store_of(store_folder() / "blocks", memory_bytes=0, disk_bytes=STORE_BYTES)


def fragment_store() -> Store:
    """Finished fragments of films, so that what was decoded and encoded once is not again."""
    return store_of(store_folder() / "fragments", memory_bytes=0, disk_bytes=STORE_BYTES)


def store_folder() -> Path:
    return Path(folder_paths.get_user_directory()) / "longlive"
