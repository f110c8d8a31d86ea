"""The newest front end on the package index; the browser tests use it beside the one that ComfyUI pins.

    python tests/browser/frontends.py setup

fetches it. If the index does not answer, it logs a warning and keeps the one fetched before.
"""

import logging
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "host"))

from hosts import CACHE

log = logging.getLogger(__name__)

PACKAGE = "comfyui-frontend-package"
NEWEST_HOME = CACHE / "frontend"
NEWEST_ROOT = NEWEST_HOME / "comfyui_frontend_package" / "static"


def set_up() -> None:
    """Fetch the newest front end, if the package index answers."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE, prefix=".frontend-") as folder:
        command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
        done = subprocess.run([*command, "--no-deps", "--target", f"{folder}/site", PACKAGE], check=False)
        if done.returncode:
            log.warning("The package index gave no %s: the browser tests leave the newest front end out.", PACKAGE)
            return
        shutil.rmtree(NEWEST_HOME, ignore_errors=True)
        Path(folder, "site").rename(NEWEST_HOME)


def main(arguments: list[str]) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if arguments != ["setup"]:
        raise SystemExit(__doc__)
    set_up()


if __name__ == "__main__":
    main(sys.argv[1:])
