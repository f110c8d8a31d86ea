"""`longlive info`: what a weights file, LoRA or session holds."""

import argparse
import logging
import os
from pathlib import Path

from ..errors import LongLiveError
from ..session.session_file import NotASession, load_session
from ..weights.describe import describe_file
from .terminal import FAILED, say

log = logging.getLogger("longlive")


def add_parser(commands) -> None:
    info = commands.add_parser("info", help="describe a weights file, LoRA or session")
    info.set_defaults(run=run_info)
    info.add_argument("files", type=Path, nargs="+")


def run_info(options: argparse.Namespace) -> int:
    status = 0
    for path in options.files:
        try:
            say(describe_path(path))
        except LongLiveError as error:
            log.error("%s: %s", type(error).__name__, error)
            status = FAILED
    return status


def describe_path(path: Path) -> str:
    if not os.path.exists(path):  # also false where we may not look
        return describe_file(path)
    try:
        return f"{path.name}: a LongLive session\n{load_session(path).describe()}"
    except NotASession:
        return describe_file(path)
