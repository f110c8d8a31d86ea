"""A take: one directed run, as a folder on disk from its first block on.

The folder holds the film (`video/film.py`), the script so far as text, and `take.json`, which names the session that
the take began with, what was decided and how it ended. Each change replaces `take.json` as a whole, so a process that
is killed at any moment leaves a take that goes on from there.
"""

import json
import logging
import re
import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError, SessionError, StoreError, VideoError
from ..files import MAX_TEXT_BYTES, claim, is_claimed, read_text, write_text
from ..session.session import Session
from ..units import FPS
from ..untrusted import parse_json, read_field
from ..video.film import Film
from .decision import Decision, read_number
from .pace import Status

log = logging.getLogger(__name__)

TAKE, SCRIPT, OWNER = "take.json", "script.txt", "owner"
TAKE_VERSION = 1
MAX_TAKES_BYTES = 4 << 30  # of all takes in a folder
ADDRESS = re.compile("[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Plan:
    """What was decided in a run, and how far it is."""

    script: str = ""  # of the blocks that are finished
    waiting: tuple[Decision, ...] = ()  # that have not begun
    urgent_end: int = 0  # blocks before it are made without waiting for a viewer
    stop_block: int | None = None  # the first block that is not to be made
    status: Status = Status.WAITING

    @classmethod
    def from_json(cls, value: object) -> "Plan":
        """Take what `as_json` gave. Raises ValueError or ConfigError for anything else."""
        return cls(
            read_field(value, "script", str),
            tuple(map(Decision.from_json, read_field(value, "waiting", list))),
            read_field(value, "urgent_end", int),
            read_number(value, "stop_block"),
            read_field(value, "status", Status),
        )

    def as_json(self) -> dict:
        return {
            "script": self.script,
            "waiting": [decision.as_json() for decision in self.waiting],
            "urgent_end": self.urgent_end,
            "stop_block": self.stop_block,
            "status": self.status.value,
        }


class Take:
    """The folder of a run. It has one owner, from `create` or `open` until `close`, or the end of a `with` block."""

    def __init__(self, folder: Path, begins_with: dict, script: str, plan: Plan, film: Film, owner: ExitStack) -> None:
        self.folder, self.plan, self.film = folder, plan, film
        self._begins_with, self.script, self._owner = begins_with, script, owner

    def __enter__(self) -> "Take":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @classmethod
    def create(cls, folder: Path, session: Session, script: str = "") -> "Take":
        """Begin a take of a session in a new folder, with a script that is made first.

        Raises StoreError or VideoError if the disk refuses, and SessionError if there is a take or somebody makes one.
        """
        if (folder / TAKE).exists():
            raise SessionError(f"{folder} holds a take already; open it, or choose another folder")
        with ExitStack() as owner:
            claim_folder(folder, owner)
            remove_film(folder)  # of a process that was killed before it wrote the take
            facts = describe_beginning(session)
            take = cls(folder, facts, script, Plan(script), Film.create(folder), owner.pop_all())
        take.save(take.plan, {})
        return take

    @classmethod
    def open(cls, folder: Path, session: Session) -> "Take":
        """Open a take to go on with it.

        Raises SessionError if there is none, or it is damaged, in use or of another session, and StoreError or
        VideoError if the disk refuses.
        """
        saved, plan = read_take(folder), read_plan(folder)
        if saved["begins_with"] != describe_beginning(session):
            raise SessionError(
                f"the take {folder.name} began with another session: its weights, size, seed, settings or earlier "
                f"blocks differ; connect the session that it began with, or begin a new take"
            )
        with ExitStack() as owner:
            claim_folder(folder, owner)
            return cls(folder, saved["begins_with"], saved["script"], plan, open_film(folder), owner.pop_all())

    def save(self, plan: Plan, state: dict) -> None:
        """Keep what was decided, and what a page is told of it. Raises StoreError if the disk refuses."""
        content = {
            "version": TAKE_VERSION,
            "begins_with": self._begins_with,
            "script": self.script,  # that it began with
            "plan": plan.as_json(),
            "state": state,
        }
        try:
            write_text(self.folder / TAKE, json.dumps(content))
            if plan.script != self.plan.script or not (self.folder / SCRIPT).exists():
                write_text(self.folder / SCRIPT, plan.script)
        except OSError as error:
            raise as_store_error(self.folder, error) from error
        self.plan = plan

    def close(self) -> None:
        """Let others open the take."""
        self._owner.close()

    def discard(self) -> None:
        """Delete the take."""
        self.close()
        self.film.discard()
        shutil.rmtree(self.folder, ignore_errors=True)


def find_take(folder: Path, address: str) -> Path | None:
    """Find the take with an address among the takes in a folder."""
    path = folder / address
    return path if ADDRESS.fullmatch(address) and (path / TAKE).is_file() else None


def read_take(folder: Path) -> dict:
    """Read the file of a take. Raises SessionError if there is none, or if it is damaged."""
    try:
        saved = parse_json(read_text(folder / TAKE), MAX_TEXT_BYTES)
        if read_field(saved, "version", int) != TAKE_VERSION:
            raise ValueError("another version of LongLive wrote it")
        facts = {name: read_field(saved, name, dict) for name in ("begins_with", "plan", "state")}
        return facts | {"script": read_field(saved, "script", str)}
    except FileNotFoundError as error:
        raise SessionError(f"there is no take in {folder}; begin a new one") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SessionError(f"the take {folder.name} cannot be read ({reason}); begin a new take") from error


def read_plan(folder: Path) -> Plan:
    """Read what was decided in a take, and how it ended. Raises SessionError if it is damaged or not there."""
    try:
        return Plan.from_json(read_take(folder)["plan"])
    except (ValueError, ConfigError) as error:
        raise SessionError(f"the take {folder.name} is damaged ({error}); begin a new take") from error


def read_state(folder: Path) -> dict:
    """Read the last state of a take that nobody makes any more, as `Director.state`. Raises SessionError."""
    state = read_take(folder)["state"]
    return state | describe_film(open_film(folder))


def describe_film(film: Film | None) -> dict:
    """Describe a film as JSON values. A piece is [number, count, first frame, number of frames]."""
    if film is None:
        return {"fps": float(FPS), "codec": "", "size": [0, 0], "pieces": []}
    state = film.state
    pieces = [[piece.number, piece.count, piece.first_frame, piece.num_frames] for piece in state.pieces]
    return {"fps": float(film.encoding.fps), "codec": state.codec, "size": [*state.size], "pieces": pieces}


def remove_old_takes(folder: Path, limit: int = MAX_TAKES_BYTES) -> list[str]:
    """Remove the oldest takes in a folder that nobody makes, until the rest has at most `limit` bytes; list them."""
    takes, removed = [], []
    for path in folder.iterdir() if folder.is_dir() else ():
        try:
            if find_take(folder, path.name) and not path.is_symlink():
                size = sum(file.stat().st_size for file in path.iterdir())
                takes.append(((path / TAKE).stat().st_mtime_ns, size, path))
        except OSError:  # another process removes it
            continue
    total = sum(size for _, size, _ in takes)
    for _, size, path in sorted(takes):
        if total <= limit:
            break
        if is_owned(path):
            continue
        shutil.rmtree(path, ignore_errors=True)
        removed.append(path.name)
        total -= size
        log.info("the take %s was removed to make room", path.name)
    return removed


def describe_beginning(session: Session) -> dict:
    """Describe the session that a take begins with: equal for equal sessions."""
    trace = session.trace()
    return {"base": trace.base, "blocks": len(trace.keys), "key": trace.keys[-1] if trace.keys else ""}


def claim_folder(folder: Path, owner: ExitStack) -> None:
    """Make a folder the owner's. Raises SessionError if it is in use, and StoreError if the disk refuses."""
    path = folder / OWNER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.touch()
        if is_claimed(path):
            raise SessionError(f"the take {folder.name} is being made; wait until it ends, or stop it")
        owner.enter_context(claim(path))
    except OSError as error:
        raise as_store_error(folder, error) from error


def open_film(folder: Path) -> Film:
    """Open the film of a take; begin it again if it is damaged."""
    try:
        return Film.open(folder)
    except VideoError as error:
        log.warning("%s", error)
        remove_film(folder)
        return Film.create(folder)


def remove_film(folder: Path) -> None:
    for path in folder.glob("film.*"):
        path.unlink()


def is_owned(folder: Path) -> bool:
    """Return whether somebody makes the take in a folder now."""
    try:
        return is_claimed(folder / OWNER)
    except OSError:
        return False


def as_store_error(folder: Path, error: OSError) -> StoreError:
    return StoreError(
        f"the take {folder.name} cannot be kept ({error.strerror or error}); the video in memory and its script are "
        f"not lost; free some space or choose a folder you may write to"
    )
