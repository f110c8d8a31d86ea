"""`longlive live`: make a video while somebody directs it, line by line on the standard input."""

import argparse
import contextlib
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from ..errors import ConfigError, LongLiveError, MessageError
from ..files import write_text
from ..live.director import Director
from ..live.inbox import Inbox
from ..live.messages import MAX_MESSAGE_BYTES, Finish, Message, Playhead, Say, read_message
from ..live.pace import Pace, Status
from ..live.take import TAKE, Take
from ..rollout.sampler import Sampler
from ..session.block_store import Store
from ..session.prompt import Prompt
from ..session.session import Session
from ..session.session_file import check_session_path, save_session
from ..units import FPS
from ..video.render import VideoRenderer
from ..video.writer import check_output
from .render import open_fragments_beside
from .terminal import FAILED, choose_status, say
from .video_options import (
    SESSION_SUFFIX,
    add_model_options,
    add_video_options,
    load_causal_model,
    load_text_encoder,
    load_video_decoder,
    open_session,
    parse_mp4_path,
    read_script,
)

log = logging.getLogger("longlive")

TAKE_SUFFIX = ".take"  # a folder beside the video, while it is made
SCRIPT_SUFFIX = ".script.txt"
INPUT_BYTES = 1 << 16
EVENT_FIELDS = ("version", "status", "sentence", "blocks", "waiting", "delay", "script")
VIEWER = "0" * 8  # of the one who reads the terminal


def add_parser(commands) -> None:
    formatter = argparse.ArgumentDefaultsHelpFormatter
    live = commands.add_parser(
        "live",
        help="make a video while you direct it: one prompt per line",
        description="Reads the standard input. A line is a prompt that begins with the next block; one that begins "
        "with { is a message (docs/command_line.md). The end of the input ends the video when all that was said has "
        "begun. Until then it plays as OUTPUT.take/film.mp4.",
        formatter_class=formatter,
    )
    live.set_defaults(run=run_live, enlarged=1)
    live.add_argument("-o", "--output", type=parse_mp4_path, required=True, help="mp4 file to write")
    live.add_argument("--script", type=Path, help="timeline script that the video begins with")
    live.add_argument("--longest", type=float, help="seconds of video after which it ends")
    live.add_argument("--json", action="store_true", help="say what happens as JSON, one object per line")
    add_model_options(live)
    live.add_argument("--text-device", help="device of the text encoder; that of the network if not given")
    live.add_argument("--session", type=Path, help="saved session to continue, instead of a new video")
    add_video_options(live)


def run_live(options: argparse.Namespace) -> int:
    """Direct a video; return the exit status. What is finished is kept, however it ends."""
    if options.longest is not None and not 0 < options.longest:
        raise ConfigError(f"--longest is {options.longest:g} s; use more than 0")
    check_output(options.output)
    check_session_path(options.output.with_suffix(SESSION_SUFFIX))
    if options.script and options.script.resolve() == options.output.with_suffix(SCRIPT_SUFFIX).resolve():
        raise ConfigError(f"-o {options.output} would overwrite {options.script}; choose another name")
    script = read_script(options.script) if options.script else ""
    session = open_session(options)
    with begin_take(options.output.with_suffix(TAKE_SUFFIX), session, script) as take:
        encoder = load_text_encoder(options, torch.device(options.text_device or options.device))
        renderer = VideoRenderer(load_video_decoder(options), take.film, open_fragments_beside(options.store))
        with Sampler(load_causal_model(options), store=Store(options.store)) as sampler:
            sampler.check_model(session)
            inbox, events = Inbox(), Events(as_json=options.json)
            director = Director(
                session,
                sampler,
                lambda text: Prompt.of(encoder(text), text),
                script=script,
                renderer=renderer,
                take=take,
                poll=PlayingViewer(inbox, lambda: take.film.num_frames).watch,
                on_change=events.report,
            )
            status = direct(director, inbox, events, options.longest)
        keep(options.output, director)
        if not status:
            take.discard()
    return status


def begin_take(folder: Path, session: Session, script: str) -> Take:
    """Open the take that an earlier run of this command left, or begin one. Raises SessionError or StoreError."""
    if not (folder / TAKE).exists():
        return Take.create(folder, session, script)
    log.info("continues %s; delete this folder to begin a new video", folder)
    return Take.open(folder, session)


def direct(director: Director, inbox: Inbox, events: "Events", longest: float | None) -> int:
    """Let the standard input direct a video; return the exit status."""
    lines = read_lines(sys.stdin.fileno())
    threading.Thread(target=put_messages, args=(lines, inbox, events), daemon=True).start()
    if sys.stdin.isatty():
        log.info("write a prompt and press Enter; Ctrl-D ends the video")
    try:
        director.run(inbox, Pace(longest=longest, patience=float("inf")))
    except KeyboardInterrupt as interrupt:
        log.warning("interrupted: run the same command to continue")
        return choose_status(interrupt)
    except LongLiveError as error:  # what is finished is kept all the same
        log.error("%s: %s", type(error).__name__, error)
        return FAILED
    return 0


def keep(output: Path, director: Director) -> None:
    """Write the video, its script and its session."""
    if not director.session.blocks:
        log.warning("no video was written: no frame is finished")
        return
    save_session(director.session, output.with_suffix(SESSION_SUFFIX))
    write_text(output.with_suffix(SCRIPT_SUFFIX), director.script)
    director.complete_film()
    film = director.film
    assert film
    film.save(output)
    log.info("%d pixel frames, %.2f s", film.num_frames, film.num_frames / FPS)
    say(output)


def put_messages(lines: Iterator[bytes | None], inbox: Inbox, events: "Events") -> None:
    """Give each line to the run. Its end is that of the input."""
    for line in lines:
        try:
            message = parse_line(line)
        except MessageError as error:
            events.refuse(error)
            continue
        with contextlib.suppress(MessageError):  # the run is over
            if message:
                inbox.put(message, patience=None)
    with contextlib.suppress(MessageError):
        inbox.put(Finish(), patience=None)


def parse_line(line: bytes | None) -> Message | None:
    """Read a message or a prompt from a line; None from an empty one. Raises MessageError, also for one too long."""
    if line is None:
        raise MessageError(f"a line has more than {MAX_MESSAGE_BYTES:,} bytes; write a shorter one")
    try:
        text = line.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise MessageError(f"a line is not UTF-8 ({error.reason}); write it in UTF-8") from error
    if not text:
        return None
    return read_message(text) if text.startswith("{") else Say(text)


def read_lines(handle: int) -> Iterator[bytes | None]:
    """Yield the lines of a file that may still grow; None for one that is too long.

    Reads without Python's buffer, whose lock a thread would hold while the interpreter ends.
    """
    line, is_too_long = b"", False
    while True:
        try:
            read = os.read(handle, INPUT_BYTES)
        except OSError:
            read = b""
        *whole, rest = read.split(b"\n")
        for end in whole:
            line += end
            yield None if is_too_long or len(line) > MAX_MESSAGE_BYTES else line
            line, is_too_long = b"", False
        line += rest
        if len(line) > MAX_MESSAGE_BYTES:
            line, is_too_long = b"", True
        if not read:
            if line or is_too_long:
                yield None if is_too_long else line
            return


class PlayingViewer:
    """Watches a film as it would play, from its end on: so the video is made no faster, and a prompt is soon seen."""

    def __init__(self, inbox: Inbox, count_frames: Callable[[], int]) -> None:
        self.inbox, self.count_frames = inbox, count_frames
        self._seconds, self._looked = count_frames() / FPS, time.monotonic()  # of the film; of the clock

    def watch(self) -> None:
        now, length = time.monotonic(), self.count_frames() / FPS
        self._seconds = min(self._seconds + now - self._looked, length)
        self._looked = now
        self.inbox.put(Playhead(self._seconds, VIEWER))


class Events:
    """Tells what happens: as log lines, or as JSON on the standard output."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self._before: dict = {"status": Status.WAITING.value, "delay": None, "blocks": 0, "sentence": ""}

    def report(self, state: dict) -> None:
        """Tell of a new state of the run."""
        before, self._before = self._before, state
        if self.as_json:
            self._say({name: state[name] for name in EVENT_FIELDS})
            return
        if state["blocks"] > before["blocks"]:
            log.info("block %d: %s", state["blocks"] - 1, state["switches"][-1]["text"])
        if state["delay"] != before["delay"]:
            log.info("%.2f s from the prompt to its first frame", state["delay"])
        if state["status"] != before["status"] and state["status"] not in ("making", "ahead"):
            log.info("%s", state["status"])

    def refuse(self, error: MessageError) -> None:
        """Tell of a line that cannot be used."""
        if self.as_json:
            self._say({"error": str(error)})
        else:
            log.warning("%s", error)

    def _say(self, event: dict) -> None:
        with contextlib.suppress(BrokenPipeError):  # nobody listens any more; the video goes on
            say(json.dumps(event))
