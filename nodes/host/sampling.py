"""Sampling inside ComfyUI: announces memory, loads weights, shows progress and previews, obeys its interrupt."""

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import comfy.model_management
import comfy.utils
import folder_paths
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...longlive.config import RolloutConfig
from ...longlive.model.causal import CausalWan
from ...longlive.model.host_copy import HostCopy
from ...longlive.model.speed import Means
from ...longlive.rollout.rollout import Pass, PassKind
from ...longlive.rollout.sampler import PROMPTS_HELD, Sampler, count_cache_bytes, count_text_bytes
from ...longlive.session.block_store import Store, open_store
from ...longlive.session.session import Session
from .compiling import check_weights_stay, compile_as_asked, is_compiling_asked, list_irreproducible
from .identity import list_opaque
from .interrupted import show_latents
from .model import as_causal_model, list_ignored, use_device
from .speed import choose_model, find_means
from .tiny_vae import create_previewer
from .warm_cache import warm_slot

log = logging.getLogger(__name__)

STORE_BYTES = 4 << 30  # 90 minutes at 832 x 480
# Tensors [tokens, width] that a pass over a whole window holds at once: 16, in a rolling video 2 with the keys and
# values that a layer attends, and room for kernels.
ACTIVATIONS = 26


@contextmanager
def open_sampler(patcher: ModelPatcher, session: Session, passes: int, *, previews: bool = True) -> Iterator[Sampler]:
    """Open a sampler for so many denoising passes (`Session.count_passes`), with progress, previews and interrupt.

    After more passes than that, the progress begins again.

    It loads nothing before it has to compute a block, unless the MODEL is to be compiled. Without an error, its KV
    cache stays warm for the next node.
    """
    try:
        means = find_means(patcher)
        patcher = choose_model(patcher, means)
        patcher.pre_run()  # calls callbacks that may change how the MODEL computes, so it comes before the key
        progress = Progress(patcher, passes, session.config, previews=previews)
        with use_device(patcher.load_device), create_sampler(patcher, means, session, progress) as sampler:
            yield sampler
            progress.show_last()
            warm_slot.keep(patcher, sampler.hand_over())
    except BaseException:
        warm_slot.clear()
        raise
    finally:
        patcher.cleanup()
        comfy.model_management.soft_empty_cache()


def extend_session(
    session: Session,
    extended: Iterator[Session],
    model: ModelPatcher,
    show: Callable[[Session], object] | None = None,
) -> Session:
    """Return the last state of a session that a sampler extends; `show` gets it after each block.

    Cancel is raised again; if nothing shows the finished blocks, it shows them.
    """
    try:
        for longer in extended:
            session = longer
            if show:
                show(session)
    except comfy.model_management.InterruptProcessingException:
        if not show:
            show_latents(session, model)
        raise
    return session


def create_sampler(patcher: ModelPatcher, means: Means, session: Session, progress: "Progress") -> Sampler:
    """Create the sampler of a MODEL whose run has begun; warn of what the MODEL carries and a session cannot use."""
    model = as_causal_model(patcher, means)
    unknown, unused = list_opaque(patcher), list_ignored(patcher)
    if is_compiling_asked(patcher):
        make_room(patcher, model, session, warm_slot.count_bytes(patcher))
        model = compile_as_asked(patcher, model)
        unknown += list_irreproducible(model)
    if unused:
        log.warning("LongLive ignores what a session cannot use of the MODEL: %s", " and ".join(unused))
    if unknown:
        log.warning(
            "the MODEL carries %s: blocks made with it are not stored, so an edit computes all of them again; remove "
            "the node that adds this to store them",
            " and ".join(unknown),
        )

    def watch(done: Pass) -> None:
        progress.add_pass(done)
        check_weights_stay(patcher, model)  # a preview may have unloaded some

    return Sampler(
        model,
        store=None if unknown else open_block_store(),
        watch=watch,
        on_found=progress.add_stored_step,
        take=functools.partial(warm_slot.take, patcher),
        prepare=DeviceRoom(patcher, model, session).prepare,
    )


def make_room(patcher: ModelPatcher, model: CausalWan, session: Session, held: int) -> None:
    """Announce the KV cache and activations to ComfyUI's memory management, and load the weights.

    `held` bytes of the KV cache are allocated already. Raises SamplingError if weights of a compiled model would move.
    """
    config, (_, _, channels, height, width) = session.config, session.block_shape
    rows, columns = model.geometry.grid(height, width)
    keys = count_cache_bytes(model, config, session.height, session.width)
    if not held:
        log.info("the KV cache of a window of %d frames takes %.0f MB", config.window, keys / 1e6)
    # Where ComfyUI has no flash attention, it estimates for an attention that holds all scores at once. None of its own
    # does that, so `most` limits the estimate.
    most = ACTIVATIONS * config.window * rows * columns * model.geometry.dim * model.dtype.itemsize
    work = min(patcher.model.memory_required([1, channels, config.window, height, width]), most)
    needed = keys - held + work + PROMPTS_HELD * count_text_bytes(model)
    comfy.model_management.load_models_gpu([patcher], memory_required=needed)
    check_weights_stay(patcher, model)


class DeviceRoom:
    """The place of a sampler on its device: made before the first block, and again where other models have moved.

    Encoding a prompt or decoding between two blocks may have unloaded the weights, or taken the room for activations.
    """

    def __init__(self, patcher: ModelPatcher, model: CausalWan, session: Session) -> None:
        self.patcher, self.model, self.session = patcher, model, session
        self._loaded: set[tuple[int, int]] = set()  # models and their bytes on a device when it was made

    def prepare(self, held: int) -> None:
        """Make room for the next block. `held` bytes of the KV cache are allocated already."""
        if held and self._loaded == list_loaded():
            return
        make_room(self.patcher, self.model, self.session, held)
        self._loaded = list_loaded()


def list_loaded() -> set[tuple[int, int]]:
    """List the models that ComfyUI has loaded, each with its bytes on the device."""
    loaded = comfy.model_management.loaded_models()
    return {(id(patcher), patcher.loaded_size()) for patcher in loaded if patcher}


class Progress:
    """Reports each denoising pass to ComfyUI, with a preview of its oldest block, and obeys its interrupt.

    A preview is copied to the CPU while the next pass is computed, and shown after that. So the GPU never waits for it.
    """

    def __init__(self, patcher: ModelPatcher, passes: int, config: RolloutConfig, *, previews: bool) -> None:
        self.patcher, self.config = patcher, config
        self.bar = comfy.utils.ProgressBar(passes)
        self.previewer = create_previewer(patcher) if previews else None
        self.prepared: HostCopy | None = None  # the preview of the last pass

    def add_pass(self, done: Pass) -> None:
        """Report a pass that is over; show the preview of the one before."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        prepared, self.prepared = self.prepared, None
        denoises = done.kind is PassKind.DENOISE
        if self.previewer and denoises and done.clean is not None:
            oldest = done.clean[:, : self.config.block]  # of a joint pass, whose newest block is noise
            self.prepared = HostCopy(self.previewer.prepare(oldest))
        if prepared or denoises:
            self._update(self.bar.current + denoises, prepared)
        if self.previewer and self.patcher not in comfy.model_management.loaded_models():  # a preview's VAE evicted it
            comfy.model_management.load_models_gpu([self.patcher])

    def show_last(self) -> None:
        """Show the preview of the last pass."""
        prepared, self.prepared = self.prepared, None
        if prepared:
            self._update(self.bar.current, prepared)

    def _update(self, passes: int, prepared: HostCopy | None) -> None:
        preview = self.previewer.draw(prepared.read()) if self.previewer and prepared else None
        self.bar.update_absolute((passes - 1) % self.bar.total + 1 if passes else 0, preview=preview)

    def add_stored_step(self) -> None:
        """Report a step of the video that was found in the store."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        self.show_last()
        self.bar.update_absolute(self.bar.current + self.config.passes_per_block)


def show_progress(blocks: Sequence[Tensor]) -> Iterator[Tensor]:
    """Yield the blocks in order, while ComfyUI shows how many are done and may interrupt."""
    bar = comfy.utils.ProgressBar(len(blocks))
    for block in blocks:
        comfy.model_management.throw_exception_if_processing_interrupted()
        yield block
        bar.update(1)


def open_block_store() -> Store:
    """Open the store of finished blocks, so that after an edit, an interrupt or a crash only new blocks are computed.

    It holds nothing in RAM: ComfyUI's own cache does that, and frees it on request.
    """
    return open_store(find_store_folder() / "blocks", memory_bytes=0, disk_bytes=STORE_BYTES)


def open_fragment_store() -> Store:
    """Open the store of finished fragments of videos, so that nothing is decoded and encoded twice."""
    return open_store(find_store_folder() / "fragments", memory_bytes=0, disk_bytes=STORE_BYTES)


def find_store_folder() -> Path:
    return Path(folder_paths.get_user_directory()) / "longlive"
