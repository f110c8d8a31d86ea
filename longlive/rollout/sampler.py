"""Extends sessions: what was computed before comes from the store, the rest from a rollout (LongLive Alg. 2).

A video grows by steps (`session/in_flight.py`): a step makes a block or, in a rolling video, takes all blocks in flight
one level further. A block's clean pass is made when the next step needs it. The KV cache is rebuilt from the session
(`cache_passes.py`), or taken over warm from the previous sampler. It is allocated when the first block has to be
computed, and freed when the sampler is closed, unless it was handed over.

The GPU waits for nothing but the end of a block: threads store the finished block and draw the noise of the next one.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import Tensor

from ..config import Positions, RolloutConfig, RolloutKind
from ..errors import SamplingError, SessionError
from ..model.causal import CausalWan, TextKeys
from ..model.dtypes import is_finite, name_precision
from ..session.block_store import Store
from ..session.boundary import Boundary
from ..session.in_flight import InFlight, Step
from ..session.prompt import Prompt
from ..session.session import Session, Trace
from ..session.timeline import Segment
from ..units import PIXELS_PER_CELL
from .cache_passes import CachePass, CleanPass, Recache, choose_missing_passes, list_cache_passes
from .kv_cache import WindowKVCache
from .noise import Noise, NoiseAhead, seed_noise
from .rolling_rollout import RollingRollout
from .rolling_window import make_window
from .rollout import Pass, Rollout, Watch, check_positions
from .stored_steps import expect_entry, find_earlier, list_latents, make_step_entry

log = logging.getLogger(__name__)

PROMPTS_HELD = 2  # the current prompt, and the one before it for the clean pass of the last block of its segment


@dataclass(frozen=True, slots=True, eq=False)
class WarmCache:
    """A KV cache on its way between two samplers, and what it holds. It has one owner at a time."""

    cache: WindowKVCache
    kernel: str  # of the model that computed it
    trace: Trace  # of the video up to the newest block made with it
    made: CachePass | None  # the newest pass in it

    def fits(self, model: CausalWan, session: Session) -> bool:
        """Return whether it equals a rebuilt cache bit for bit. The caller knows that `model` itself computed it."""
        return self.kernel == model.kernel and session.continues(self.trace)


class Sampler:
    """Extends sessions with `model`. A context manager; keeps the KV cache between calls on one video.

    The owner of the weights may give four functions:

    - `watch` is called after every pass;
    - `on_found` is called for every step found in the store;
    - `take` returns the cache that the previous sampler handed over, or None; one that does not fit is freed;
    - `prepare` is called before every step that is computed, with the bytes of the KV cache that exist already (0 if
      it is yet to be allocated), to make room and load the weights: since the last block, another model may have used
      the device.
    """

    def __init__(
        self,
        model: CausalWan,
        *,
        store: Store | None = None,
        watch: Watch | None = None,
        on_found: Callable[[], object] = lambda: None,
        take: Callable[[], WarmCache | None] = lambda: None,
        prepare: Callable[[int], object] = lambda held: None,
    ) -> None:
        self.model, self.store, self.watch, self.on_found = model, store, watch or (lambda _: None), on_found
        self.take, self.prepare = take, prepare
        self._rollout: Rollout | None = None
        self._trace: Trace | None = None  # of the video in the rollout's cache
        self._made: CachePass | None = None  # the newest pass in it
        self._newest: Tensor | None = None  # latents of the newest block of `_trace`, on the model's device
        self._text_keys: dict[str, TextKeys] = {}  # by the digest of the prompt
        self._noise: tuple[tuple, NoiseAhead] | None = None  # with what it depends on
        self._thread = ThreadPoolExecutor(max_workers=1)  # stores blocks
        self._storing: Future[None] | None = None

    def __enter__(self) -> "Sampler":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Free the KV cache, once the last block is stored."""
        if self._storing:
            wait([self._storing])
        self._noise = None
        held = [*([self._rollout] if self._rollout else []), *self._text_keys.values()]
        self._rollout = self._trace = self._made = self._newest = None
        self._text_keys = {}
        for each in held:
            each.release()

    def hand_over(self) -> WarmCache | None:
        """Return the KV cache, so that the next sampler can continue with it; None if no block was computed.

        This sampler is empty afterwards. Text keys are freed: to compute a prompt's again takes 0.5 % of a pass.
        """
        warm = None
        if self._rollout and self._trace:
            warm = WarmCache(self._rollout.cache, self.model.kernel, self._trace, self._made)
            self._rollout = None
        self.close()
        return warm

    def sample(self, session: Session, blocks: int) -> Session:
        """Return the session with the next `blocks` blocks. Raises what `extend` raises."""
        *_, session = session, *self.extend(session, blocks)
        return session

    def extend(self, session: Session, blocks: int, end: int | None = None) -> Iterator[Session]:
        """Yield the session after each of the next `blocks` finished blocks.

        A rolling video ends with block number `end`, if it is given: none begins behind it. Otherwise the blocks in
        flight stay so, and any sampler may go on.

        Raises PositionError before anything is computed if the video would exceed the table of positions, SessionError
        for a session without a prompt, of another kind of model, or with an end before its blocks in flight, and
        SamplingError for a block with NaN or infinity, which is not stored. After an error the sampler is empty; the
        sessions it yielded stay valid.

        A step is stored when the next pass is over, the last one when its block is yielded. An error of storing is
        raised then.
        """
        self.check_model(session)
        check_length(session, blocks)
        check_end(session, end)
        if not session.switches:
            raise SessionError("the session has no prompt yet; give it one before its first frame is sampled")
        last = len(session.blocks) + blocks
        for number in range(len(session.blocks) + 1, last + 1):
            while len(session.blocks) < number:
                session = self.advance(session, end)
            if number == last:
                self._finish_storing()
            yield session

    def finish(self, session: Session) -> Iterator[Session]:
        """Yield the session after each of its blocks in flight, with none behind them; block-wise there are none.

        Raises what `extend` raises.
        """
        if session.num_begun > len(session.blocks):
            yield from self.extend(session, session.num_begun - len(session.blocks), session.num_begun)

    def advance(self, session: Session, end: int | None = None) -> Session:
        """Return the session after its next step. Raises what `extend` raises of computing and storing."""
        session = self._restore_in_flight(session)
        step = session.plan_step(end)
        key = session.compute_next_key(self.model.kernel, step)
        found = self._find_stored(session, step, key)
        if found:
            self.on_found()
            return session.advanced_by(step, found, key)
        latents = self._compute(session, step)
        session = session.advanced_by(step, latents, key)
        self._trace = session.trace()  # not for a step from the store, which is not in the cache
        if self.store:
            self._finish_storing()
            self._storing = self._thread.submit(self.store.write, key, make_step_entry(step, latents))
        return session

    def _find_stored(self, session: Session, step: Step, key: str) -> list[Tensor] | None:
        """Find the latents that a step of the session left, under its key."""
        entry = self.store.read(key, expect_entry(session, step)) if self.store else None
        return list_latents(entry, session.config.block) if entry else None

    def _restore_in_flight(self, session: Session) -> Session:
        """Return the session with the blocks in flight that it lacks, from the store, or by its steps up to here."""
        if not session.lacks_in_flight:
            return session
        video = self._find_nearest(session)
        while len(video.blocks) < len(session.blocks):
            step = video.plan_step()
            in_flight = video.advanced_by(step, self._compute(video, step), "").in_flight
            video = replace(find_earlier(session, len(video.blocks) + step.finishes), in_flight=in_flight)
            self._trace, self._newest = video.trace(), None
        assert video.in_flight
        return replace(session, in_flight=replace(video.in_flight, key=session.keys[-1]))

    def _find_nearest(self, session: Session) -> Session:
        """Find the latest state of a video whose blocks in flight are stored, or the beginning of its run."""
        step = Step(session.config.num_in_flight, len(session.config.steps))
        first = session.find_run(session.num_frames) // session.config.block
        for number in range(len(session.blocks), first, -1):
            found = self._find_stored(session, step, session.keys[number - 1])
            if found:
                return replace(
                    find_earlier(session, number),
                    in_flight=InFlight(tuple(found[1:]), step.level_after, session.keys[-1]),
                )
        return find_earlier(session, first)

    def _finish_storing(self) -> None:
        """Wait until the last block is stored. Raises what storing raised."""
        storing, self._storing = self._storing, None
        if storing:
            storing.result()

    def _observe(self, done: Pass) -> None:
        """Let the watcher see a pass. Here the GPU has work to do, so that a wait for the disk costs nothing."""
        self._finish_storing()
        self.watch(done)

    def check_model(self, session: Session) -> None:
        """Check that a session fits the model. Raises SessionError if its channels or dtype are others."""
        if (session.channels, session.dtype) != (self.model.geometry.in_dim, self.model.dtype):
            raise SessionError(
                f"the session's latents are {session.channels} channels of {name_precision(session.dtype)}, but the "
                f"model makes {self.model.geometry.in_dim} channels of {name_precision(self.model.dtype)}; continue it "
                f"with the model and the dtype it began with"
            )

    def _compute(self, session: Session, step: Step) -> tuple[Tensor, ...]:
        """Compute the blocks [1, F, C, h, w] that a step leaves, on the CPU."""
        try:
            rollout = self._find_rollout(session)
            self._rebuild_cache(rollout, session)
            text = self._read_prompt(session.last_change.prompt)
            noise, start, block = self._find_noise(session), session.num_frames - session.origin, len(session.blocks)
            if isinstance(rollout, RollingRollout):
                begun = [*session.in_flight.blocks] if session.in_flight else []
                if step.enters:
                    begun.append(noise(block + len(begun), 0))
                blocks = rollout.roll(start, begun, step.level, text, noise, block)
            else:
                blocks = [rollout.denoise(start, text, noise, block)]
            if step.finishes:
                self._newest = blocks[0]
            latents = torch.cat(blocks, dim=1).cpu()
            if not is_finite(latents):
                raise SamplingError(
                    f"the model made NaN or infinity from frame {session.num_frames} on, in "
                    f"{name_precision(session.dtype)}; finished blocks are kept; use bf16 or fp32 if this is fp16, "
                    f"else other weights or a weaker LoRA"
                )
            return latents.split(session.config.block, dim=1)
        except BaseException:
            self.close()
            raise

    def _find_noise(self, session: Session) -> Noise:
        """Find the noise of this video, of which the next block may be drawn already."""
        facts = (session.noise_seed, session.block_shape, session.dtype)
        if not self._noise or self._noise[0] != facts:
            self._noise = facts, NoiseAhead(seed_noise(*facts))
        return self._noise[1]

    def _find_rollout(self, session: Session) -> Rollout:
        """Find the rollout with the KV cache of this video: the current one, the one handed over, or a new one."""
        if not (self._rollout and self._trace and session.continues(self._trace)):
            self.close()
            warm = self.take()
            if warm and warm.fits(self.model, session):
                self._rollout, self._trace, self._made = self._start_rollout(session, warm.cache), warm.trace, warm.made
            elif warm:
                warm.cache.release()
        self.prepare(self._rollout.cache.num_bytes if self._rollout else 0)
        self._rollout = self._rollout or self._start_rollout(session)
        return self._rollout

    def _start_rollout(self, session: Session, cache: WindowKVCache | None = None) -> Rollout:
        batch, _, *shape = session.block_shape
        kind = RollingRollout if session.config.kind is RolloutKind.ROLLING else Rollout
        return kind(self.model, session.config, (batch, *shape), cache=cache, watch=self._observe)

    def _rebuild_cache(self, rollout: Rollout, session: Session) -> None:
        """Make the passes that the next step depends on and that are not in the KV cache yet (LongLive Alg. 2).

        After a block of the same video these are its clean pass and, at a switch, the recache. For a new cache they are
        all that it needs.
        """
        config, layers = session.config, self.model.geometry.num_layers
        changes = session.list_changes()
        switches = [(change.frame, change.boundary) for change in changes]
        needed = rollout.window.list_needed_slots(session.num_frames - session.origin, config.block)
        history = list_cache_passes(config, switches, session.num_frames)
        newest = next(history, None)
        missing = choose_missing_passes(chain([newest], history), needed, layers, made=self._made) if newest else []
        if missing and not self._trace:
            log.info("the KV cache of the video is rebuilt: %d passes", len(missing))
        for each in missing:
            change = changes[each.segment]
            latents = self._find_latents(session, each.origin + each.place.start, each.place.frames)
            text = self._read_prompt(change.prompt)
            match each:
                case Recache():
                    log.info("recache of %d frames at frame %d: %s", each.place.frames, change.frame, change.prompt)
                    rollout.recache(each.end, latents, text, renew=each.renew)
                case CleanPass():
                    rollout.clean_pass(each.place.start, latents, text)
        self._made = newest

    def _find_latents(self, session: Session, start: int, count: int) -> Tensor:
        """Find finished frames: the last block that was computed on the model's device, others on the CPU."""
        trace, block = self._trace, session.config.block
        if self._newest is not None and trace and (start, count) == ((len(trace.keys) - 1) * block, block):
            return self._newest
        return session.frames(start, count)

    def _read_prompt(self, prompt: Prompt) -> TextKeys:
        """Return the text keys of a prompt; those of one earlier prompt stay allocated."""
        if prompt.digest not in self._text_keys:
            while len(self._text_keys) >= PROMPTS_HELD:
                self._text_keys.pop(next(iter(self._text_keys)))
            self._text_keys[prompt.digest] = self.model.read_prompt(prompt.pad())
        return self._text_keys[prompt.digest]


def check_length(session: Session, blocks: int) -> None:
    """Check that `blocks` more blocks fit the table of positions. Raises PositionError."""
    check_positions(session.config, session.num_frames - session.origin + blocks * session.config.block)


def check_end(session: Session, end: int | None) -> None:
    """Check that no block in flight is at or after the end of a video. Raises SessionError."""
    if end is not None and end < session.num_begun:
        raise SessionError(
            f"the video would end with {end} blocks, but {session.num_begun} have begun; make it at least "
            f"{session.num_begun - len(session.blocks)} blocks longer, or rewind it"
        )


def check_timeline(session: Session, segments: Sequence[Segment], ends: Sequence[int | None] = ()) -> None:
    """Check that the segments, and where the video ends for each (`plan_ends`), fit before computing anything.

    Raises PositionError, or SessionError for an end before the blocks in flight.
    """
    if ends and segments[0].boundary is not Boundary.CUT:
        check_end(session, ends[0])
    origin, end = session.origin, session.num_frames
    for segment in segments:
        if segment.boundary is Boundary.CUT:
            origin = end
        end += segment.blocks * session.config.block
        check_positions(session.config, end - origin)


def count_timeline_passes(session: Session, segments: Sequence[Segment]) -> int:
    """Count the denoising passes of a script that continues a session: every cut of a rolling video begins anew."""
    config, blocks = session.config, sum(segment.blocks for segment in segments)
    ramps = config.num_in_flight * sum(segment.boundary is Boundary.CUT for segment in segments)
    drops = segments[0].boundary is Boundary.CUT
    return ramps + (blocks * config.passes_per_block if drops else session.count_passes(blocks))


def count_text_bytes(model: CausalWan) -> int:
    """Count the bytes of one prompt's keys and values."""
    geometry = model.geometry
    return 2 * geometry.num_layers * geometry.text_len * geometry.dim * model.dtype.itemsize


def count_cache_bytes(model: CausalWan, config: RolloutConfig, height: int, width: int) -> int:
    """Count the bytes of the KV cache for a video of `height` x `width` pixels: 3.45 GB at 480 x 832 in bf16."""
    geometry = model.geometry
    rows, columns = geometry.grid(height // PIXELS_PER_CELL, width // PIXELS_PER_CELL)
    is_kept_twice = config.positions is Positions.UNBOUNDED and config.kind is RolloutKind.BLOCKWISE
    keys_only = config.sink if is_kept_twice else 0
    per_frame = geometry.num_layers * rows * columns * geometry.dim * model.dtype.itemsize
    return per_frame * (2 * make_window(config).size + keys_only)
