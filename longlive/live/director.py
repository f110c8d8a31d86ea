"""Directs a video while it is made: block by block, under prompts that come while it runs (LongLive Alg. 2).

Everything it does ends between two blocks, so whatever interrupts it leaves a video, a film and a script of all
finished blocks.
"""

import logging
import time
from collections.abc import Callable
from contextlib import suppress

from ..errors import LongLiveError, PositionError, SessionError, StoreError, VideoError
from ..rollout.cache_passes import count_rebuild_passes
from ..rollout.sampler import Sampler
from ..session.boundary import Blend, Boundary
from ..session.prompt import Prompt
from ..session.session import Session
from ..video.film import Film
from ..video.render import VideoRenderer
from .decision import list_decisions
from .direction import Direction
from .film_meter import FilmMeter
from .inbox import Inbox, Sent
from .messages import Finish, Pause, Playhead, Prepare, Reseed, Resume, RewindTo, Say, Stop
from .pace import Pace, Status
from .take import Plan, Take, describe_film

log = logging.getLogger(__name__)

WAIT_SECONDS = 0.1  # between two looks whether the owner wants to interrupt


class Director:
    """Makes a video under prompts that are said while it grows.

    `encode` makes a prompt of a text. What the video is to begin with is given as a `script`, or in the `take`. Over a
    film, a `renderer` continues with what the film shows already. Two functions may be given:

    - `poll` is called in `run`, also while it waits; what it raises ends the run;
    - `on_change` is called in `run` with the state of the run as JSON values, after every change.

    Raises TimelineError, PositionError or ConditioningError for a script that cannot be made.
    """

    def __init__(
        self,
        session: Session,
        sampler: Sampler,
        encode: Callable[[str], Prompt],
        *,
        script: str = "",
        renderer: VideoRenderer | None = None,
        take: Take | None = None,
        poll: Callable[[], object] = lambda: None,
        on_change: Callable[[dict], object] = lambda state: None,
    ) -> None:
        self.sampler, self.renderer, self.take = sampler, renderer, take
        self.poll, self.on_change = poll, on_change
        self._direction = Direction(session, encode, take.plan if take else Plan(script))
        self._rebuild_costs: list[int] = []  # passes to go on from each directed block
        self._has_resumed = False  # whether the renderer knows what the film shows
        self._status, self._sentence, self._is_held = Status.WAITING, "", False
        self._is_finishing = False  # nobody will want anything any more
        self._meter: FilmMeter | None = None
        self._version, self._asked, self._delay = 0, 0.0, None
        self.state = self._describe()

    @property
    def session(self) -> Session:
        return self._direction.session

    @property
    def script(self) -> str:
        """The script of what was directed so far; empty without a block."""
        return self._direction.script

    @property
    def film(self) -> Film | None:
        return self.renderer.writer if self.renderer and isinstance(self.renderer.writer, Film) else None

    def say(
        self,
        prompt: str,
        boundary: Boundary = Boundary.RECACHE,
        *,
        seed: int | None = None,
        blend: Blend | None = None,
        at: float | None = None,
    ) -> None:
        """Let a prompt begin with the next block, or at `at` seconds of the video.

        A second prompt for one block replaces the first. Raises MessageError or ConditioningError for one that cannot
        be used; nothing is changed then.
        """
        self._direction.say(Say(prompt, boundary, seed, blend, at))

    def rewind(self, block: int) -> None:
        """Go back to the start of a block; what was decided there stands until something else is said.

        Raises MessageError for a block before the first one that was directed, or after the last one, SessionError for
        one at the end of a rolling video, and VideoError if the disk refuses; nothing is changed then.
        """
        self._direction.check_rewind(block)
        if self.renderer:
            self._resume(self.renderer)
            self.renderer.rewind(min(block, self.renderer.num_blocks))
        self._direction.rewind(block)
        del self._rebuild_costs[block - self._direction.begins :]

    def reseed(self, seed: int) -> None:
        """Use other noise from the next block on. Raises MessageError before the first prompt."""
        self._direction.reseed(seed)

    def make(self, blocks: int) -> Session:
        """Make the next blocks; return the session. Raises what `Sampler.extend` and `VideoRenderer` raise."""
        for _ in range(blocks):
            self._make_block()
        return self.session

    def finish(self) -> Session:
        """Make the blocks that a rolling video has in flight; return the session. Raises what `make` raises."""
        end = self.session.num_begun
        while len(self.session.blocks) < end:
            self._make_block(end)
        return self.session

    def make_script(self) -> Session:
        """Make what is left of the script that the video begins with; return the session. Raises what `make` raises."""
        direction = self._direction
        while direction.is_urgent:
            self.poll()
            self._make_block(direction.find_end(direction.urgent_end))
            self._publish(Status.MAKING)
        self._publish(Status.STOPPED)
        return self.session

    def run(self, inbox: Inbox, pace: Pace) -> Status:
        """Make the video until a message, the pace or an error ends it; return how it ended.

        A message that cannot be followed, and a disk that refuses, end nothing: the state says so in a sentence.
        """
        self._meter = FilmMeter(self.film) if self.film else None
        try:
            status = self._run(inbox, pace)
        except BaseException as error:
            inbox.close()
            is_failure = isinstance(error, Exception)
            self._finish(Status.FAILED if is_failure else Status.INTERRUPTED, str(error) if is_failure else "")
            raise
        inbox.close()
        at_limit = "the video has its largest length; set a greater one (longest) to go on"
        self._finish(status, self._sentence or (at_limit if status is Status.COMPLETE else ""))
        return status

    def _run(self, inbox: Inbox, pace: Pace) -> Status:
        while True:
            self.poll()
            self._read(inbox, pace)
            status = self._choose_status(pace)
            if status is Status.MAKING:
                self._try_block(pace)
            elif status is Status.PARKED and not inbox.close(only_if_empty=True):
                continue
            elif status.is_over:
                self.finish()
                return status
            elif status is not self._status or self._has_news():
                self._publish(status)
            else:
                inbox.wait(WAIT_SECONDS)

    def _choose_status(self, pace: Pace) -> Status:
        direction = self._direction
        if direction.is_stopped:
            return Status.STOPPED
        return pace.choose(
            direction.seconds,
            direction.block_seconds,
            has_prompt=direction.has_prompt,
            is_held=self._is_held,
            is_urgent=direction.is_urgent,
        )

    def _try_block(self, pace: Pace) -> None:
        """Make a block. If it has no position, or the disk refuses, hold the video until somebody wants something."""
        if self._status is not Status.MAKING:
            self._publish(Status.MAKING)
        try:
            self._make_block(self._direction.find_end(pace.count_blocks(self._direction.block_seconds)))
        except (PositionError, VideoError, StoreError) as error:
            if self._is_finishing:
                raise
            self._refuse(error)
            self._is_held = True
        pace.keep_awake()
        self._publish(Status.MAKING)

    def _read(self, inbox: Inbox, pace: Pace) -> None:
        """Follow the messages that came since the last block."""
        has_changed = False
        for sent in inbox.drain():
            if isinstance(sent.message, Playhead):
                pace.observe(sent.message.viewer, sent.message.seconds, sent.time)
                continue
            pace.keep_awake()
            if isinstance(sent.message, Prepare):
                self._prepare(sent.message)
                continue
            if not has_changed:
                has_changed, self._sentence = True, ""
            try:
                self._follow(sent, pace)
            except LongLiveError as error:
                self._refuse(error, logging.INFO)
        self._direction.begin_due()
        if has_changed:
            try:
                self._save()
            except StoreError as error:
                self._refuse(error)
            self._publish(self._choose_status(pace))

    def _prepare(self, message: Prepare) -> None:
        """Encode a prompt that may be said soon. That it cannot be encoded is said when it is."""
        with suppress(LongLiveError):
            self._direction.read_prompt(message.prompt)

    def _follow(self, sent: Sent, pace: Pace) -> None:
        """Do what a message asks for. Raises a LongLiveError if that cannot be done; nothing is changed then."""
        message = sent.message
        if not isinstance(message, Pause):
            self._is_held = False
        match message:
            case Say():
                self._direction.say(message)
                self._asked = sent.time if message.at is None else self._asked
            case Pause():
                pace.is_paused = True
            case Resume():
                pace.is_paused = False
            case RewindTo():
                self.rewind(message.to)
                pace.rewind(self._direction.seconds)
            case Reseed():
                self.reseed(message.seed)
            case Stop():
                self._direction.stop(message.at)
            case Finish():
                pace.is_paused, self._is_finishing = False, True
                self._direction.finish()

    def _make_block(self, end: int | None = None) -> None:
        """Make a block. A rolling video ends with block number `end`, if it is given."""
        direction = self._direction
        direction.begin_due()
        if not direction.has_prompt:
            raise SessionError("nothing was said yet; say a prompt before the first block is made")
        self._render()
        cost = self._count_rebuild_passes()
        *_, direction.session = self.sampler.extend(direction.session, 1, end)
        self._rebuild_costs.append(cost)
        self._render()
        if self._asked:
            self._asked, self._delay = 0.0, time.monotonic() - self._asked
        self._save()

    def _render(self) -> None:
        """Append the blocks to the film that it lacks; one from an earlier process first waits for its own blocks."""
        if not self.renderer or self._is_behind():
            return
        self._resume(self.renderer)
        for latents in self.session.blocks[self.renderer.num_blocks :]:
            self.renderer.render_block(latents)

    def complete_film(self) -> None:
        """Let the film show all frames of the video and no others. Raises VideoError if the disk refuses."""
        if self.renderer:
            self._resume(self.renderer)
            self._render()
            self.renderer.finish()

    def _is_behind(self) -> bool:
        """Return whether the video is not yet as long again as the film that it is to continue."""
        shown = len(self.film.pieces) if self.film and not self._has_resumed else 0
        return self._direction.is_urgent and self._direction.end < shown

    def _resume(self, renderer: VideoRenderer) -> None:
        """Let the renderer find what the film shows already; drop what it shows of another video."""
        if self.film and not self._has_resumed:
            renderer.resume(self.session.blocks)
        self._has_resumed = True

    def _count_rebuild_passes(self) -> int:
        """Count the passes that would be needed to make the next block without a KV cache."""
        changes = [(change.frame, change.boundary) for change in self.session.list_changes()]
        layers = self.sampler.model.geometry.num_layers
        return count_rebuild_passes(self.session.config, changes, self.session.num_frames, layers)

    def _refuse(self, error: LongLiveError, level: int = logging.WARNING) -> None:
        self._sentence = str(error)
        log.log(level, "%s", error)

    def _finish(self, status: Status, sentence: str) -> None:
        self._status, self._sentence = status, sentence
        if self.renderer:
            with suppress(VideoError):  # which the film shows by its length
                self.renderer.wait()
        if self._meter:
            self._meter.close(None if status in (Status.INTERRUPTED, Status.FAILED) else self.session)
        with suppress(LongLiveError):  # the state says how it ended, whatever the disk says
            self._save()
        self._publish(status)

    def _save(self) -> None:
        """Keep script and plans in the take. Raises StoreError if the disk refuses."""
        if self.take:
            drift = self._drift if self._status.is_over else {}  # too long to be written at every block
            self.take.save(self._direction.plan(self._status), self._describe_run() | {"drift": drift})

    @property
    def _drift(self) -> dict:
        return self._meter.drift if self._meter else {}

    def _has_news(self) -> bool:
        """Return whether another thread has encoded or measured a block since the last state."""
        shown = len(self.film.pieces) if self.film else 0
        return shown != len(self.state["pieces"]) or self._drift != self.state["drift"]

    def _publish(self, status: Status) -> None:
        self._status = status
        self._version += 1
        if self._meter:
            self._meter.follow(self.session)
        self.state = self._describe()
        self.on_change(self.state)

    def _describe(self) -> dict:
        return self._describe_run() | describe_film(self.film)

    def _describe_run(self) -> dict:
        """Describe all of the run but its film as JSON values."""
        direction, costs = self._direction, self._rebuild_costs
        falls = (number for number, cost in enumerate(costs) if not number or cost < costs[number - 1])
        return {
            "take": self.take.folder.name if self.take else "",
            "version": self._version,
            "status": self._status.value,
            "sentence": self._sentence,
            "blocks": direction.end,
            "begins": direction.begins,
            "block_seconds": direction.block_seconds,
            "switches": [decision.as_json() for decision in list_decisions(self.session)],
            "waiting": [decision.as_json() for decision in direction.list_waiting()],
            "cheap": [direction.begins + number for number in falls],  # where a rebuild is shorter than just before
            "script": direction.recorded_script,
            "script_end": direction.script_end,
            "begins_with": self.take.script if self.take else "",
            "delay": self._delay,
            "drift": self._drift,
        }
