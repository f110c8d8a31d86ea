"""The options of commands that make a video, and what they choose: size, session, networks and devices."""

import argparse
import hashlib
import logging
import os
from dataclasses import replace
from pathlib import Path

import torch

from ..config import Positions, RolloutConfig, RolloutKind
from ..errors import ConfigError, ScriptError, SessionError
from ..files import read_text
from ..miniature.files import DIT, VAE, check_miniature_size, check_present
from ..miniature.text import MiniatureText
from ..miniature.world import SIZE
from ..model.causal import CausalWan
from ..model.compiled import CompiledWan, compile_model
from ..model.dtypes import COMPUTE_DTYPES
from ..model.speed import Speed, choose_means
from ..model.text_encoder import UMT5
from ..model.tiny_vae import LatentSpace
from ..model.vae import LATENT_CHANNELS
from ..model.vae_streams import ResumableDecoder
from ..session.session import Session
from ..session.session_file import load_session
from ..session.timeline import MAX_CHARACTERS, spell_blocks
from ..weights.file_digest import digest_file
from ..weights.load import build_model
from ..weights.load_decoder import load_decoder
from ..weights.lora import prepare_lora
from ..weights.quantise import read_forms
from ..weights.trained_rollout import find_trained_rollout, is_used_averaged
from ..weights.weights_file import read_weights_file
from .lora_options import add_lora_options, check_lora_options

log = logging.getLogger("longlive")

SESSION_SUFFIX = ".session.safetensors"  # beside the video
RELEASED_SIZE = (832, 480)  # pixels
MAX_SCRIPT_BYTES = 4 * MAX_CHARACTERS
RELEASED = {RolloutKind.BLOCKWISE: RolloutConfig(), RolloutKind.ROLLING: RolloutConfig.roll()}
OWN_NUMBERS = ("window", "sink", "block", "steps", "positions")  # options that each kind of video has defaults for


def add_model_options(command: argparse.ArgumentParser) -> None:
    """Add the weights, and how they are computed."""
    weights = command.add_mutually_exclusive_group(required=True)
    weights.add_argument("--weights", type=Path, help="longlive_base.pt, rolling_forcing_dmd.pt, or a safetensors file")
    weights.add_argument(
        "--miniature", action="store_true", help="the small model that comes with the pack, 64 x 64 pixels"
    )
    add_lora_options(command)
    command.add_argument(
        "--pipeline", type=Path, help="Wan2.1 folder in diffusers format, for the text encoder and the VAE"
    )
    command.add_argument(
        "--vae",
        type=Path,
        help="the VAE in place of the pipeline's: Wan2.1's, or a tiny one (taew2_1, lighttaew2_1): faster, softer",
    )
    command.add_argument(
        "--latent-space",
        choices=[space.value for space in LatentSpace],
        help="latents that a tiny VAE takes; its file's name says so if not given",
    )
    on_gpu = torch.cuda.is_available()
    command.add_argument("--device", default="cuda" if on_gpu else "cpu", help="device: cpu, cuda or cuda:0")
    command.add_argument(
        "--dtype", choices=COMPUTE_DTYPES, default="bf16" if on_gpu else "fp32", help="precision of weights and latents"
    )
    command.add_argument(
        "--sage",
        action="store_true",
        help="use 8-bit attention, SageAttention or else comfy-kitchen's: faster on consumer GPUs, not exact",
    )
    command.add_argument(
        "--speed",
        choices=[speed.value for speed in Speed],
        default=Speed.EXACT.value,
        help="fast: 8-bit attention where there is a kernel, joined operations; fastest: 8-bit linears as well, where "
        "they are faster than bf16 (give --vae a tiny VAE, too). What is not here is left out, and the log says so",
    )
    command.add_argument(
        "--compile",
        action="store_true",
        help="compile the layers of the network by inductor: ten seconds of a CPU for blocks and as many for recaches; "
        "then a block takes 0 to 4%% less on a CPU (a GPU is not measured). Needs a C++ compiler, and Triton on a GPU",
    )


def add_video_options(command: argparse.ArgumentParser) -> None:
    """Add the settings of a new video. A saved session has its own."""
    released, rolling = RELEASED.values()
    video = command.add_argument_group("a new video")
    video.add_argument(
        "--width", type=int, help="width in pixels, a multiple of 16; 832 if not given, 64 for the miniature"
    )
    video.add_argument(
        "--height", type=int, help="height in pixels, a multiple of 16; 480 if not given, 64 for the miniature"
    )
    video.add_argument("--seed", type=int, default=0, help="noise seed")
    video.add_argument(
        "--kind",
        choices=[kind.value for kind in RolloutKind],
        help="block-wise (LongLive), or rolling (Rolling Forcing, for weights that were trained so); if not given, the "
        "name of the weights file decides",
    )
    video.add_argument(
        "--window",
        type=int,
        help=f"window in latent frames, sink included; {released.window} if not given, {rolling.window} if rolling",
    )
    video.add_argument(
        "--sink", type=int, help=f"first latent frames, kept permanently; {released.sink} if not given, in both kinds"
    )
    video.add_argument(
        "--block", type=int, help=f"latent frames denoised together; {released.block} if not given, in both kinds"
    )
    video.add_argument(
        "--steps",
        type=int,
        nargs="+",
        help=f"denoising steps, falling from at most 1000; {spell_steps(released)} if not given, "
        f"{spell_steps(rolling)} if rolling",
    )
    video.add_argument("--shift", type=float, default=released.shift, help="timestep shift")
    video.add_argument(
        "--context-noise", type=float, default=released.context_noise, help="timestep of the clean pass and the recache"
    )
    video.add_argument(
        "--positions",
        choices=[position.value for position in Positions],
        help=f"absolute positions end at frame 1024, unbounded ones never; {released.positions.value} if not given, "
        f"{rolling.positions.value} if rolling",
    )
    caches = find_cache_folder()
    command.add_argument("--store", type=Path, default=caches and caches / "blocks", help="folder for finished blocks")


def spell_steps(config: RolloutConfig) -> str:
    return " ".join(map(str, config.steps))


def open_session(options: argparse.Namespace) -> Session:
    """Begin the video that was asked for, or load the one that it continues. Checks the options on the way.

    Raises ConfigError, WeightsError or SessionError.
    """
    check_lora_options(options)
    find_device(options.device)
    weights, _ = choose_files(options)
    facts = [digest_file(path, cache_dir=find_cache_folder()) for path in (weights, options.lora) if path]
    ema = options.ema or is_used_averaged(weights.name) or None
    identity = hashlib.sha256(f"{facts} {options.strength} {ema}".encode()).hexdigest()
    if not options.session:
        return begin_session(options, identity, COMPUTE_DTYPES[options.dtype])
    if options.session.resolve() == options.output.with_suffix(SESSION_SUFFIX).resolve():
        raise SessionError(f"-o {options.output} would overwrite {options.session}; choose another name")
    video = resume_session(options.session, identity)
    if options.kind not in (None, video.config.kind):
        raise SessionError(
            f"{options.session} is a {video.config.kind} video, not a {options.kind} one; leave out --kind, or begin "
            f"a new video without --session"
        )
    log.info("size, seed and settings are those of %s", options.session)
    if video.in_flight:
        log.info("%s of it in flight, which the next prompt finishes", spell_blocks(len(video.in_flight.blocks)))
    return video


def load_video_decoder(options: argparse.Namespace) -> ResumableDecoder:
    """Load the decoder of the VAE that was asked for."""
    _, file = choose_files(options)
    space = LatentSpace(options.latent_space) if options.latent_space else None
    return load_decoder(file, space=space, device=torch.device(options.device), dtype=COMPUTE_DTYPES[options.dtype])


def load_text_encoder(options: argparse.Namespace, device: torch.device) -> MiniatureText | UMT5:
    """Load the text encoder that belongs to the weights: 11 GB, but for the miniature's."""
    if options.miniature:
        return MiniatureText()
    return UMT5.of_pipeline(options.pipeline, device=device, dtype=COMPUTE_DTYPES[options.dtype])


def load_causal_model(options: argparse.Namespace) -> CausalWan:
    """Load the network at the speed that was asked for. Linears that have 8 bits in the file stay as they are."""
    device, dtype = torch.device(options.device), COMPUTE_DTYPES[options.dtype]
    weights, _ = choose_files(options)
    means = choose_means(Speed(options.speed), device, dtype)
    file = read_weights_file(weights, ema=options.ema)
    form = means.form
    if form and read_forms(file.tensors, file.name):
        log.info("%s has linears in 8 bits, which stay as they are", file.name)
        form = None
    lora = prepare_lora(options.lora, options.strength)
    tree, _ = build_model(file, lora=lora, dtype=dtype, device=device, eight_bit=form)
    model = CausalWan.of_tree(tree, quantised_attention=options.sage or means.attention, joined=means.joined)
    if options.compile:
        model, outcome = compile_model(model)
        log.log(logging.INFO if isinstance(model, CompiledWan) else logging.WARNING, "the network is %s", outcome)
    log.info("speed: %s, computed by %s", means.speed, model.kernel)
    for sentence in means.left_out:
        log.warning("%s does without: %s", means.speed, sentence)
    return model


def choose_files(options: argparse.Namespace) -> tuple[Path, Path]:
    """Choose the weights files of the model and of the VAE. Raises ConfigError for options that do not fit."""
    if options.miniature:
        if options.pipeline:
            raise ConfigError("--pipeline belongs to real weights; the miniature has its own VAE and text encoder")
        if options.vae:
            raise ConfigError("--vae belongs to real weights; the miniature has its own VAE")
        check_present(DIT, VAE)
        return DIT, VAE
    if options.pipeline is None:
        raise ConfigError(
            "--pipeline is missing: these weights need the text encoder and the VAE of Wan2.1; give a "
            "diffusers-format folder, for example a download of Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
        )
    return options.weights, options.vae or options.pipeline / "vae"


def choose_size(options: argparse.Namespace) -> tuple[int, int]:
    """Choose width and height in pixels. Raises ConfigError for a size that the miniature was not trained for."""
    asked_size, usual = (options.width, options.height), (SIZE, SIZE) if options.miniature else RELEASED_SIZE
    width, height = (default if asked is None else asked for asked, default in zip(asked_size, usual, strict=True))
    if options.miniature:
        check_miniature_size(width, height)
    return width, height


def choose_numbers(options: argparse.Namespace) -> RolloutConfig:
    """Choose the numbers of a new video: those given, else the released ones of its kind. Raises ConfigError."""
    given = {name: getattr(options, name) for name in OWN_NUMBERS if getattr(options, name) is not None}
    return replace(choose_released_numbers(options), shift=options.shift, context_noise=options.context_noise, **given)


def choose_released_numbers(options: argparse.Namespace) -> RolloutConfig:
    """Choose the released numbers of the kind of video that was asked for, or that the name of the weights tells."""
    weights, _ = choose_files(options)
    trained = find_trained_rollout(weights.name)
    if options.kind and not (trained and trained.kind == options.kind):
        return RELEASED[RolloutKind(options.kind)]
    if trained and not options.kind:
        log.warning(
            "the name of %s says that its weights were trained for %s videos with steps %s, so this is one; --kind "
            "chooses another (docs/rolling_forcing.md)",
            weights.name,
            trained.kind,
            spell_steps(trained),
        )
    return trained or RELEASED[RolloutKind.BLOCKWISE]


def begin_session(options: argparse.Namespace, identity: str, dtype: torch.dtype) -> Session:
    """Begin a new session with the settings in `options`."""
    width, height = choose_size(options)
    return Session.start(
        model=identity,
        config=choose_numbers(options),
        height=height,
        width=width,
        seed=options.seed,
        dtype=dtype,
        channels=LATENT_CHANNELS,
    )


def resume_session(path: Path, identity: str) -> Session:
    """Load a saved session. Raises SessionError if it was made with other weights."""
    session = load_session(path)
    if session.model != identity:
        raise SessionError(
            f"{path} was made with other weights; give the weights, the LoRA and the strength it was made with, "
            f"or continue it in ComfyUI if it was made there"
        )
    return session


def read_script(path: Path) -> str:
    """Read the text of a script file. Raises ScriptError."""
    try:
        return read_text(path, MAX_SCRIPT_BYTES)
    except FileNotFoundError as error:
        raise ScriptError(f"the script {path} does not exist; give a text file with one segment per line") from error
    except OSError as error:
        reason = error.strerror or error
        raise ScriptError(f"the script {path} cannot be read ({reason}); give a text file in UTF-8") from error


def find_device(name: str) -> torch.device:
    """Find a device by name. Raises ConfigError if this machine lacks it."""
    try:
        torch.empty(0, device=name).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"there is no device {name!r} here; use cpu, cuda or cuda:0") from error
    return torch.device(name)


def parse_mp4_path(name: str) -> Path:
    """Parse the path of an output. Only mp4 files are overwritten."""
    if not name.lower().endswith(".mp4"):
        raise argparse.ArgumentTypeError(f"{name} must end in .mp4")
    return Path(name)


def find_cache_folder() -> Path | None:
    """Find the folder for caches: that of XDG_CACHE_HOME, or ~/.cache; None for a user without a home folder."""
    try:
        caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:
        return None
    return Path(caches) / "longlive"
