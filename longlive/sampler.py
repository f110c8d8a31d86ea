"""Makes a session longer: finished blocks from the store, new ones by a rollout.

The rollout's memory is rebuilt from the session (`replay.py`), or taken over warm from the sampler before. It is
allocated when the first block has to be computed, and freed when the sampler is closed, unless it was handed over.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor

from .cache import Memory, TextMemory
from .config import PIXELS_PER_CELL, Positions, RolloutConfig
from .errors import SamplingError, SessionError
from .finite import is_finite
from .model.causal import CausalWan
from .noise import counted_noise
from .replay import Call, calls_before, needed
from .rollout import PassKind, Rollout, Watch, check_positions
from .session import Prompt, Session, Trace
from .store import Store
from .timeline import Boundary

log = logging.getLogger(__name__)

TEXTS_HELD = 2  # the prompt that rules and the one before it, which a clean pass may still need


@dataclass(frozen=True, slots=True, eq=False)
class Warm:
    """A memory between two samplers, and what it remembers. It has one owner: who hands it on lets go of it."""

    memory: Memory
    kernel: str  # of the model that computed it
    past: Trace  # the video up to the newest block made with it
    made: Call | None  # the newest call it holds

    def serves(self, model: CausalWan, session: Session) -> bool:
        """Whether it holds what a rebuilt memory would hold, to the bit, if `model` is the one that computed it."""
        return self.kernel == model.kernel and session.continues(self.past)


class Sampler:
    """Extends sessions made with `model`. A context manager; keeps the memory warm between calls on one video.

    `take` gives the memory that the sampler before handed over, if there is one; one that does not serve is freed.
    `prepare` is called before a memory is used, with the bytes of it that are there already: whoever owns the weights
    can make room and load them then. `found` is called for every block that the store has.
    """

    def __init__(
        self,
        model: CausalWan,
        *,
        store: Store | None = None,
        watch: Watch | None = None,
        found: Callable[[], object] = lambda: None,
        take: Callable[[], Warm | None] = lambda: None,
        prepare: Callable[[int], object] = lambda held: None,
    ) -> None:
        self.model, self.store, self.watch, self.found = model, store, watch, found
        self.take, self.prepare = take, prepare
        self._rollout: Rollout | None = None
        self._past: Trace | None = None  # the video that the rollout remembers
        self._made: Call | None = None  # the newest call its memory holds
        self._texts: dict[str, TextMemory] = {}

    def __enter__(self) -> "Sampler":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Free the memory."""
        held = [*([self._rollout.memory] if self._rollout else []), *self._texts.values()]
        self._rollout = self._past = self._made = None
        self._texts = {}
        for memory in held:
            memory.release()

    def hand_over(self) -> Warm | None:
        """Let go of the memory, so that the next sampler can go on with it; None where no block was computed.

        Text keys are freed: to read a prompt again costs half a hundredth of a pass.
        """
        warm = None
        if self._rollout and self._past:
            warm = Warm(self._rollout.memory, self.model.kernel, self._past, self._made)
            self._rollout = None
        self.close()
        return warm

    def extended(self, session: Session, blocks: int) -> Session:
        """The session after the next `blocks` blocks."""
        *_, session = session, *self.extend(session, blocks)
        return session

    def extend(self, session: Session, blocks: int) -> Iterator[Session]:
        """The session after each of the next `blocks` blocks.

        Raises PositionError before anything is computed if the video would outrun the table of positions, and
        SessionError for a session of another kind of model. A block of NaN or infinity is not kept, but raises
        SamplingError. After an error the sampler is empty; the sessions it yielded stay good.
        """
        self.check(session, [(Boundary.KEEP, blocks)])
        if not session.switches:
            raise SessionError("the session has no prompt yet; give it one before its first frame is sampled")
        for _ in range(blocks):
            key = session.next_key(self.model.kernel)
            latents = self.store.get(key, session.block_shape, session.dtype) if self.store else None
            if latents is not None:
                session = session.extended_by(latents, key)
                self.found()
            else:
                session = session.extended_by(self._compute(session), key)
                self._past = session.trace()  # a block from the store changes no memory
                if self.store:
                    self.store.put(key, session.blocks[-1])
            yield session

    def check(self, session: Session, segments: Iterable[tuple[Boundary, int]]) -> None:
        """Refuse what cannot be made to its end, before anything is computed: `segments` are (boundary, blocks).

        Raises SessionError for a session of another kind of model, and PositionError.
        """
        if (session.channels, session.dtype) != (self.model.geometry.in_dim, self.model.dtype):
            raise SessionError(
                f"the session's latents are {session.channels} channels of {session.dtype}, but the model makes "
                f"{self.model.geometry.in_dim} channels of {self.model.dtype}; continue it with the model it began with"
            )
        check_length(session, segments)

    def _compute(self, session: Session) -> Tensor:
        try:
            rollout = self._rollout_for(session)
            self._remember(rollout, session)
            text = self._read(session.switches[-1].prompt)
            noise = counted_noise(session.seed, session.block_shape, session.dtype)
            latents = rollout.denoise(session.num_frames - session.origin, text, noise, len(session.blocks)).cpu()
            if not is_finite(latents):
                raise SamplingError(
                    f"the model made NaN or infinity of frame {session.num_frames} on, in {session.dtype}; what is "
                    f"finished is kept; use bfloat16 or float32 if this is float16, else other weights or a weaker LoRA"
                )
            return latents
        except BaseException:
            self.close()
            raise

    def _rollout_for(self, session: Session) -> Rollout:
        if self._rollout and self._past and session.continues(self._past):
            return self._rollout
        self.close()
        self._take_over(session)
        self.prepare(self._rollout.memory.num_bytes if self._rollout else 0)
        if not self._rollout:
            self._rollout = self._begin(session)
        return self._rollout

    def _take_over(self, session: Session) -> None:
        """Go on with the memory of the sampler before, or free it if it is another's."""
        warm = self.take()
        if warm is None:
            return
        if warm.serves(self.model, session):
            self._rollout = self._begin(session, warm.memory)
            self._past, self._made = warm.past, warm.made
        else:
            warm.memory.release()

    def _begin(self, session: Session, memory: Memory | None = None) -> Rollout:
        batch, _, *shape = session.block_shape
        return Rollout(self.model, session.config, (batch, *shape), memory=memory, watch=self.watch)

    def _remember(self, rollout: Rollout, session: Session) -> None:
        """Bring the memory up to the session's end: the calls its next block depends on and that are not made yet."""
        config, start = session.config, session.num_frames - session.origin
        history = [(switch.frame, switch.boundary) for switch in session.switches]
        upcoming = rollout.window.block(start, config.block)
        calls = calls_before(config, history, session.num_frames)
        missing = needed(calls, upcoming, self.model.geometry.num_layers, made=self._made)
        if missing and not self._past:
            log.info("the memory of the video is rebuilt: %d passes", len(missing))
        for call in missing:
            switch = session.switches[call.segment]
            if call.is_recache:
                log.info("recache of %d frames at frame %d: %s", call.place.frames, switch.frame, switch.prompt)
            latents = session.frames(call.origin + call.place.start, call.place.frames)
            kind = PassKind.RECACHE if call.is_recache else PassKind.CLEAN
            rollout.remember(call.place, latents, self._read(switch.prompt), kind)
        self._made = next(calls_before(config, history, session.num_frames), None)

    def _read(self, prompt: Prompt) -> TextMemory:
        """The prompt's text keys; those of one earlier prompt are kept beside them."""
        if prompt.digest not in self._texts:
            while len(self._texts) >= TEXTS_HELD:
                self._texts.pop(next(iter(self._texts)))
            self._texts[prompt.digest] = self.model.read(prompt.padded())
        return self._texts[prompt.digest]


def check_length(session: Session, segments: Iterable[tuple[Boundary, int]]) -> None:
    """Refuse segments of (boundary, blocks) that would outrun the table of positions. Raises PositionError."""
    origin, end = session.origin, session.num_frames
    for boundary, blocks in segments:
        if boundary is Boundary.DISCARD:
            origin = end
        end += blocks * session.config.block
        check_positions(session.config, end - origin)


def text_bytes(model: CausalWan) -> int:
    """Bytes of one prompt's keys and values."""
    geometry = model.geometry
    return 2 * geometry.num_layers * geometry.text_len * geometry.dim * model.dtype.itemsize


def memory_bytes(model: CausalWan, config: RolloutConfig, height: int, width: int) -> int:
    """Bytes of the window's keys and values for a video of `height` x `width` pixels: 3.45 GB at 480 x 832 in bf16."""
    geometry = model.geometry
    rows, columns = geometry.grid(height // PIXELS_PER_CELL, width // PIXELS_PER_CELL)
    keys_only = config.sink if config.positions is Positions.UNBOUNDED else 0
    per_frame = geometry.num_layers * rows * columns * geometry.dim * model.dtype.itemsize
    return per_frame * (2 * config.window + keys_only)
