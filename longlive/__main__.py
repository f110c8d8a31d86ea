"""The command line: render a timeline, say what a file is, replay recorded runs, show the method working."""

import argparse
import hashlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from tqdm import tqdm

from . import __version__, session_file
from .clip import Clip
from .config import FPS, Positions, RolloutConfig
from .demo import ENLARGED, STORY
from .digest import digest
from .errors import CheckpointError, ConfigError, LongLiveError, ScriptError, SessionError
from .evaluate import evaluate
from .files import read_text
from .film import Film
from .miniature import claims, tuned
from .miniature.files import DIT, VAE, check_size, load_miniature, present
from .miniature.text import MiniatureText
from .miniature.world import SIZE
from .model.causal import CausalWan
from .model.checkpoint import describe, load_model
from .model.vae import LATENT_CHANNELS, StreamingDecoder, WanVAE
from .model.vae_file import load_vae
from .rollout import PassKind
from .sampler import Sampler, check_length
from .session import Prompt, Session
from .store import Store
from .text import UMT5
from .timeline import MAX_CHARACTERS, Segment, parse, report
from .tune.commands import add_commands
from .untrusted import printable_lines
from .verify import verify
from .video import VideoWriter, check_output

log = logging.getLogger("longlive")

SESSION_SUFFIX = ".session.safetensors"  # beside the video
RELEASED_SIZE = (832, 480)  # pixels
MAX_SCRIPT_BYTES = 4 * MAX_CHARACTERS
FAILED, NOT_A_RUN, INTERRUPTED, TERMINATED = 1, 2, 130, 143  # the last two as a shell names SIGINT and SIGTERM
SEEDS = 32  # of the published tables
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def main(arguments: list[str] | None = None) -> int:
    """Run a command; the exit status."""
    options = parser().parse_args(arguments)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PlainFormatter())
    logging.basicConfig(level=options.log_level, handlers=[handler])
    try:
        with terminable():
            return options.run(options)
    except LongLiveError as error:
        for each in reversed([*chain_of(error)]):
            log.error("%s: %s", type(each).__name__, each)
        return FAILED
    except KeyboardInterrupt as interrupt:
        return status_of(interrupt)


class Terminated(KeyboardInterrupt):
    """SIGTERM: a Ctrl-C from another process."""


@contextmanager
def terminable() -> Iterator[None]:
    """Turn SIGTERM into an interrupt, so that it keeps as much as Ctrl-C does."""

    def interrupt(*_: object) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def status_of(interrupt: KeyboardInterrupt) -> int:
    return TERMINATED if isinstance(interrupt, Terminated) else INTERRUPTED


def chain_of(error: BaseException | None) -> Iterator[LongLiveError]:
    """The errors of ours that led to this one, the last first: that of a clean-up must not hide the first."""
    is_explained = False  # by the error that was raised from it
    while error:
        if isinstance(error, LongLiveError) and not is_explained:
            yield error
        is_explained = error.__cause__ is not None
        error = error.__cause__ or error.__context__


class PlainFormatter(logging.Formatter):
    """Messages as they are, but for what could take hold of the terminal: names and prompts come from files."""

    def format(self, record: logging.LogRecord) -> str:
        return printable_lines(super().format(record))


def say(text: object) -> None:
    """Write lines to standard output, in which nothing can take hold of the terminal."""
    sys.stdout.write(f"{printable_lines(str(text))}\n")


def parser() -> argparse.ArgumentParser:
    formatter = argparse.ArgumentDefaultsHelpFormatter
    top = argparse.ArgumentParser(prog="longlive", description="Long videos whose prompt changes while they run.")
    top.add_argument("--version", action="version", version=__version__)
    top.set_defaults(log_level=logging.INFO)
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    render = commands.add_parser("render", help="make a video along a timeline script", formatter_class=formatter)
    render.set_defaults(run=run_render)
    render.add_argument(
        "script", type=Path, help="a text file: `8s | prompt` a line, indented lines go on with the prompt"
    )
    weights = render.add_mutually_exclusive_group(required=True)
    weights.add_argument("--weights", type=Path, help="longlive_base.pt or safetensors")
    weights.add_argument("--miniature", action="store_true", help="the small model that is part of the pack, 64 x 64")
    render.add_argument(
        "--ema", action="store_true", default=None, help="the averaged weights of a training checkpoint"
    )
    render.add_argument("--lora", type=Path, help="LongLive's lora.pt")
    render.add_argument("--strength", type=float, default=1.0, help="of the LoRA")
    render.add_argument("--pipeline", type=Path, help="a diffusers-format Wan2.1 folder: text encoder, VAE")
    render.add_argument("-o", "--output", type=mp4, required=True, help="the mp4 to write")
    render.add_argument("--session", type=Path, help="go on with this saved session instead of a new video")
    on_gpu = torch.cuda.is_available()
    render.add_argument("--device", default="cuda" if on_gpu else "cpu", help="cpu, cuda or cuda:0")
    render.add_argument("--dtype", choices=DTYPES, default="bf16" if on_gpu else "fp32", help="of weights and latents")
    render.add_argument("--sage", action="store_true", help="SageAttention: faster on consumer GPUs, 8-bit, not exact")
    add_video_options(render)
    render.set_defaults(enlarged=1)

    demo = commands.add_parser("demo", help="tell a story of five prompts", formatter_class=formatter)
    demo.set_defaults(run=run_demo)
    demo.add_argument("-o", "--output", type=mp4, default=Path("demo.mp4"), help="the mp4 to write")
    demo.add_argument("--seed", type=int, default=0, help="of the noise")

    measure = commands.add_parser(
        "evaluate", help="measure a video, or what the miniature shows of the method", formatter_class=formatter
    )
    measure.set_defaults(run=run_evaluate)
    measured = measure.add_mutually_exclusive_group(required=True)
    measured.add_argument("video", type=Path, nargs="?", help="any video")
    measured.add_argument(
        "--miniature", action="store_true", help="sample and measure all it claims: half a minute a seed"
    )
    measure.add_argument("--script", type=Path, help="what the video was made along")
    measure.add_argument("--clip", type=Path, help="the folder of a CLIP model, for a score of each prompt")
    measure.add_argument("--seeds", type=int, help=f"videos of the miniature for each number; {SEEDS} if left out")
    measure.add_argument("--lora", type=Path, help="an adapter for the miniature: measure before and after")
    measure.add_argument("-o", "--output", type=Path, help="the folder for report.md, report.json and plots")

    add_commands(commands)

    info = commands.add_parser("info", help="say what a checkpoint, LoRA or session holds")
    info.set_defaults(run=run_info)
    info.add_argument("files", type=Path, nargs="+")

    check = commands.add_parser("verify", help="replay recorded runs of the reference and compare every number")
    check.set_defaults(run=run_verify, log_level=logging.WARNING)  # a file has its line of the verdict
    check.add_argument("files", type=Path, nargs="+")
    return top


def add_video_options(command: argparse.ArgumentParser) -> None:
    """The settings of a new video. A session that goes on has its own."""
    released = RolloutConfig()
    video = command.add_argument_group("a new video")
    video.add_argument("--width", type=int, help="pixels, a multiple of 16; 832 if not given, 64 for the miniature")
    video.add_argument("--height", type=int, help="pixels, a multiple of 16; 480 if not given, 64 for the miniature")
    video.add_argument("--seed", type=int, default=0, help="of the noise")
    video.add_argument("--window", type=int, default=released.window, help="latent frames, the sink included")
    video.add_argument("--sink", type=int, default=released.sink, help="first frames, remembered for ever")
    video.add_argument("--block", type=int, default=released.block, help="frames denoised together")
    video.add_argument("--steps", type=int, nargs="+", default=released.steps, help="falling from 1000")
    video.add_argument("--shift", type=float, default=released.shift, help="of the timesteps")
    video.add_argument("--context-noise", type=float, default=released.context_noise, help="timestep of the clean pass")
    positions = [position.value for position in Positions]
    video.add_argument("--positions", choices=positions, default=released.positions.value, help="unbounded never ends")
    command.add_argument("--store", type=Path, default=cache_folder() / "blocks", help="where finished blocks are kept")


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "longlive"


def run_render(options: argparse.Namespace) -> int:
    return rendered(options, written(options.script))


def run_demo(options: argparse.Namespace) -> int:
    """As `render --miniature`, without a store and enlarged."""
    output, seed = str(options.output), str(options.seed)
    render = parser().parse_args(["render", "", "--miniature", "--seed", seed, "-o", output])
    render.store, render.enlarged = None, ENLARGED
    return rendered(render, STORY)


def rendered(options: argparse.Namespace, script: str) -> int:
    """Make the video of a script."""
    check_output(options.output)
    device, dtype = device_of(options.device), DTYPES[options.dtype]
    weights, vae_file = files_of(options)
    facts = [digest(path, cache_dir=cache_folder()) for path in (weights, options.lora) if path]
    identity = hashlib.sha256(f"{facts} {options.strength} {options.ema}".encode()).hexdigest()
    if options.session:
        if options.session.resolve() == options.output.with_suffix(SESSION_SUFFIX).resolve():
            raise SessionError(f"-o {options.output} would overwrite {options.session}; choose another name")
        video = continued(options.session, identity)
        log.info("size, seed and settings are those of %s", options.session)
    else:
        video = begun(options, identity, dtype)
    segments = parse(script, video.config.block)
    check_length(video, [(segment.boundary, segment.blocks) for segment in segments])
    encoder = MiniatureText() if options.miniature else UMT5.of_pipeline(options.pipeline, device=device, dtype=dtype)
    prompts = [Prompt.of(encoder(segment.prompt), segment.prompt) for segment in segments]
    del encoder  # 11 GB that nothing needs any more
    tree, _ = load_model(
        weights, lora=options.lora, strength=options.strength, dtype=dtype, device=device, ema=options.ema
    )
    model = CausalWan.of_tree(tree, quantised_attention=options.sage)
    vae = load_vae(vae_file, device=device, dtype=dtype)
    return film(options, video, segments, prompts, model, vae)


def files_of(options: argparse.Namespace) -> tuple[Path, Path]:
    """The weights of the model and of the VAE."""
    if options.miniature:
        if options.pipeline:
            raise ConfigError("--pipeline belongs to real weights; the miniature has a VAE and words of its own")
        present(DIT, VAE)
        return DIT, VAE
    if options.pipeline is None:
        raise ConfigError(
            "--pipeline is missing: these weights need the text encoder and the VAE of Wan2.1; give a "
            "diffusers-format folder, for example a download of Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
        )
    return options.weights, options.pipeline / "vae"


def size_of(options: argparse.Namespace) -> tuple[int, int]:
    """Width and height in pixels. Raises ConfigError for a size the miniature was not trained for."""
    asked_size, usual = (options.width, options.height), (SIZE, SIZE) if options.miniature else RELEASED_SIZE
    width, height = (default if asked is None else asked for asked, default in zip(asked_size, usual, strict=True))
    if options.miniature:
        check_size(width, height)
    return width, height


def begun(options: argparse.Namespace, identity: str, dtype: torch.dtype) -> Session:
    """A new session."""
    width, height = size_of(options)
    return Session.start(
        model=identity,
        config=RolloutConfig(
            window=options.window,
            sink=options.sink,
            block=options.block,
            steps=tuple(options.steps),
            shift=options.shift,
            context_noise=options.context_noise,
            positions=Positions(options.positions),
        ),
        height=height,
        width=width,
        seed=options.seed,
        dtype=dtype,
        channels=LATENT_CHANNELS,
    )


def continued(path: Path, identity: str) -> Session:
    """A saved session, if it was made with these weights."""
    session = session_file.load(path)
    if session.model != identity:
        raise SessionError(
            f"{path} was made with other weights; give the weights, the LoRA and the strength it was made with, "
            f"and go on in ComfyUI if it was made there"
        )
    return session


def written(path: Path) -> str:
    """The text of a script file."""
    try:
        return read_text(path, MAX_SCRIPT_BYTES)
    except FileNotFoundError as error:
        raise ScriptError(f"the script {path} does not exist; give a text file, one segment a line") from error
    except OSError as error:
        reason = error.strerror or error
        raise ScriptError(f"the script {path} cannot be read ({reason}); give a text file in UTF-8") from error


def device_of(name: str) -> torch.device:
    try:
        torch.empty(0, device=name).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"there is no device {name!r} here; use cpu, cuda or cuda:0") from error
    return torch.device(name)


def mp4(name: str) -> Path:
    """The type of an output: any other file may be the user's own."""
    if not name.lower().endswith(".mp4"):
        raise argparse.ArgumentTypeError(f"{name} must end in .mp4")
    return Path(name)


def film(
    options: argparse.Namespace,
    video: Session,
    segments: tuple[Segment, ...],
    prompts: list[Prompt],
    model: CausalWan,
    vae: WanVAE,
) -> int:
    """Make, decode and write the video block by block; keep its session beside it, also when interrupted."""
    session_path = options.output.with_suffix(SESSION_SUFFIX)
    log.info("%s", report(segments, video.config.block, video.num_frames))
    blocks, steps = sum(segment.blocks for segment in segments), len(video.config.steps)
    status = 0
    writer = VideoWriter(options.output)
    film = Film(StreamingDecoder(vae), writer, fragment_store(options), enlarged=options.enlarged)
    try:
        with (
            writer,
            tqdm(total=blocks * steps, unit="step", disable=None) as bar,
            Sampler(
                model,
                store=Store(options.store),
                watch=lambda done: bar.update(done.kind is PassKind.DENOISE),
                found=lambda: bar.update(steps),
            ) as sampler,
        ):
            sampler.check(video, [(segment.boundary, segment.blocks) for segment in segments])
            for latents in video.blocks:
                film.push(latents)
            for segment, prompt in zip(segments, prompts, strict=True):
                for longer in sampler.extend(video.switched_to(prompt, segment.boundary), segment.blocks):
                    video = longer
                    film.push(video.blocks[-1])
            film.finish()
    except KeyboardInterrupt as interrupt:
        status = status_of(interrupt)
        log.warning("interrupted: %s", "the same command goes on from here" if options.store else "begin again")
    finally:
        keep(video, session_path)
    if not writer.num_frames:
        log.warning("no video yet: there is no picture")
        return status
    log.info("%d pixel frames, %.2f s", writer.num_frames, writer.num_frames / FPS)
    say(options.output)
    return status


def fragment_store(options: argparse.Namespace) -> Store | None:
    """Where the encoded blocks of films are kept, beside the blocks of latents."""
    return Store(options.store.with_name(f"{options.store.name}-fragments"), memory_bytes=0) if options.store else None


def keep(video: Session, path: Path) -> None:
    """Save a session, unless a longer one that begins with it is there already. Raises SessionError, StoreError."""
    if path.exists():
        try:
            earlier = session_file.load(path)
        except LongLiveError:  # another file, or a damaged one
            earlier = None
        if earlier and len(earlier.blocks) > len(video.blocks) and earlier.begins_as(video):
            log.info("session: %s stays as it is, which goes on after these %d frames", path, video.num_frames)
            return
    session_file.save(video, path)
    log.info("session: %s, %d frames", path, video.num_frames)


def run_evaluate(options: argparse.Namespace) -> int:
    if options.miniature and (options.script or options.clip):
        raise ConfigError("--script and --clip belong to a video; leave them out with --miniature")
    if options.video and (options.seeds is not None or options.lora):
        raise ConfigError("--seeds and --lora belong to --miniature; a video is measured as it is")
    if options.miniature:
        seeds = SEEDS if options.seeds is None else options.seeds
        if options.lora:
            found = tuned.report(load_miniature(), load_miniature(lora=options.lora), seeds)
        else:
            found = claims.report(load_miniature(), seeds)
    else:
        segments = parse(written(options.script)) if options.script else ()
        found = evaluate(options.video, segments, Clip.of_folder(options.clip) if options.clip else None)
    say(str(found).rstrip("\n"))
    if options.output:
        found.write(options.output)
    return 0


def run_info(options: argparse.Namespace) -> int:
    status = 0
    for path in options.files:
        try:
            say(described(path))
        except LongLiveError as error:
            log.error("%s: %s", type(error).__name__, error)
            status = FAILED
    return status


def described(path: Path) -> str:
    if not os.path.exists(path):  # which is false where one may not look, too
        return describe(path)
    try:
        return f"{path.name}: a LongLive session\n{session_file.load(path).report()}"
    except session_file.NotASession:
        return describe(path)


def run_verify(options: argparse.Namespace) -> int:
    status = 0
    for path in options.files:
        try:
            verdict = verify(path)
        except CheckpointError as error:
            say(error)
            status = NOT_A_RUN
            continue
        outcome = "failed" if verdict.failures else "reproduced"
        apart = f"largest difference {verdict.difference:.2g} in {verdict.where}" if verdict.difference else "equal"
        say(f"{path.name}: {outcome}, {apart}")
        for failure in verdict.failures:
            say(f"  {failure}")
        if verdict.failures:
            status = status or FAILED
    return status


if __name__ == "__main__":
    sys.exit(main())
