"""`longlive render`: make a video from a timeline script."""

import argparse
import logging
from pathlib import Path

import torch
from tqdm import tqdm

from ..errors import LongLiveError
from ..model.causal import CausalWan
from ..model.vae_streams import ResumableDecoder
from ..rollout.rollout import PassKind
from ..rollout.sampler import Sampler, check_timeline, count_timeline_passes
from ..session.block_store import Store
from ..session.prompt import Prompt, encode_prompt_mix
from ..session.session import Session
from ..session.session_file import check_session_path, load_session, save_session
from ..session.timeline import Segment, count_blending, parse_timeline, plan_ends, report_timeline, spell_blocks
from ..units import FPS
from ..video.render import VideoRenderer
from ..video.writer import VideoWriter, check_output
from .terminal import choose_status, say
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


def add_parser(commands) -> None:
    formatter = argparse.ArgumentDefaultsHelpFormatter
    render = commands.add_parser("render", help="make a video from a timeline script", formatter_class=formatter)
    render.set_defaults(run=run_render)
    render.add_argument(
        "script", type=Path, help="text file: one `8s | prompt` per line; indented lines continue the prompt"
    )
    render.add_argument("-o", "--output", type=parse_mp4_path, required=True, help="mp4 file to write")
    add_model_options(render)
    render.add_argument("--session", type=Path, help="saved session to continue, instead of a new video")
    add_video_options(render)
    render.set_defaults(enlarged=1)


def run_render(options: argparse.Namespace) -> int:
    return render_script(options, read_script(options.script))


def render_script(options: argparse.Namespace, script: str) -> int:
    """Make the video of a script; return the exit status."""
    check_output(options.output)
    check_session_path(options.output.with_suffix(SESSION_SUFFIX))
    video = open_session(options)
    segments = parse_timeline(script, video.config.block)
    check_timeline(video, segments, plan_ends(segments, len(video.blocks)))
    decoder = load_video_decoder(options)
    prompts = encode_segments(options, segments)
    model = load_causal_model(options)
    return make_video(options, video, segments, prompts, model, decoder)


def encode_segments(options: argparse.Namespace, segments: tuple[Segment, ...]) -> list[Prompt]:
    """Encode the prompt of each segment. The text encoder is freed at the end."""
    encoder = load_text_encoder(options, torch.device(options.device))
    return [encode_prompt_mix(each.prompt, lambda text: Prompt.of(encoder(text), text)) for each in segments]


def make_video(
    options: argparse.Namespace,
    video: Session,
    segments: tuple[Segment, ...],
    prompts: list[Prompt],
    model: CausalWan,
    decoder: ResumableDecoder,
) -> int:
    """Sample, decode and write the video block by block; keep its session beside it, also when interrupted."""
    session_path = options.output.with_suffix(SESSION_SUFFIX)
    config = video.config
    blending = count_blending(segments, video.num_begun - len(video.blocks), config.num_in_flight)
    log.info("%s", report_timeline(segments, config.block, video.num_frames, blending))
    ends = plan_ends(segments, len(video.blocks))
    status = 0
    writer = VideoWriter(options.output)
    renderer = VideoRenderer(decoder, writer, open_fragments_beside(options.store), enlarged=options.enlarged)
    try:
        with (
            writer,
            tqdm(total=count_timeline_passes(video, segments), unit="step", disable=None) as bar,
            Sampler(
                model,
                store=Store(options.store),
                watch=lambda done: bar.update(done.kind is PassKind.DENOISE),
                on_found=lambda: bar.update(video.config.passes_per_block),
            ) as sampler,
        ):
            sampler.check_model(video)
            for latents in video.blocks:
                renderer.render_block(latents)
            for segment, prompt, end in zip(segments, prompts, ends, strict=True):
                switched = video.switched_to(prompt, segment.boundary, seed=segment.seed, blend=segment.blend)
                for longer in sampler.extend(switched, segment.blocks, end):
                    video = longer
                    renderer.render_block(video.blocks[-1])
            renderer.finish()
    except KeyboardInterrupt as interrupt:
        status = choose_status(interrupt)
        log.warning("interrupted: %s", "run the same command to continue" if options.store else "run the command again")
    finally:
        keep_session(video, session_path)
    if not writer.num_frames:
        log.warning("no video was written: no frame is finished")
        return status
    log.info("%d pixel frames, %.2f s", writer.num_frames, writer.num_frames / FPS)
    say(options.output)
    return status


def open_fragments_beside(blocks: Path | None) -> Store | None:
    """Open the store of encoded fragments, beside the store of blocks; none beside none."""
    return Store(blocks.with_name(f"{blocks.name}-fragments"), memory_bytes=0) if blocks else None


def keep_session(video: Session, path: Path) -> None:
    """Save a session, unless the file holds a longer one that begins with it. Raises SessionError or StoreError."""
    if path.exists():
        try:
            earlier = load_session(path)
        except LongLiveError:  # a damaged one
            earlier = None
        if earlier and len(earlier.blocks) > len(video.blocks) and earlier.begins_with(video):
            log.info("session: %s is unchanged, as it continues after these %d frames", path, video.num_frames)
            return
    save_session(video, path)
    in_flight = f", {spell_blocks(len(video.in_flight.blocks))} in flight" if video.in_flight else ""
    log.info("session: %s, %d frames%s", path, video.num_frames, in_flight)
