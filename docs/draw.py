"""Draw the pictures that the miniature makes: the film of the README and the thumbnails of the workflows.

python docs/draw.py

Needs the fonts DejaVu Sans, and for the last thumbnail a tuning's `curve.jsonl` as the only argument.
"""

import json
import sys
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from longlive.cli.demo import DEMO_SCRIPT  # noqa: E402
from longlive.config import RolloutConfig  # noqa: E402
from longlive.miniature.evaluation.video_sampler import VideoSampler  # noqa: E402
from longlive.miniature.files import WEIGHTS_FOLDER, load_miniature  # noqa: E402
from longlive.miniature.grammar import parse_prompt  # noqa: E402
from longlive.session.boundary import Boundary  # noqa: E402
from longlive.session.timeline import Segment, parse_timeline  # noqa: E402
from longlive.units import FPS  # noqa: E402
from longlive.video.pixels import to_bytes  # noqa: E402

TOP, BOTTOM, CARD, INK, FAINT, ACCENT = "#1e222b", "#121417", "#262b36", "#eceff4", "#8b93a3", "#f2b84b"
SCALE = 2  # text and lines are drawn this many times as large
SEED = 42
TUNED = WEIGHTS_FOLDER / "longlive_miniature_tuned.safetensors"

RED = "a red ring moves right at night from the north west"
BLUE = "a blue ring moves down at dusk"
SQUARE = "a blue square moves left by day"
YELLOW = "a yellow ring moves up by day"
STILL = "a blue square stays still at night"


def sample_film(segments: Sequence[Segment], seed: int, *, tuned: bool = False) -> list[Image.Image]:
    """Sample a video of some segments; return its pixel frames."""
    config = RolloutConfig()
    first, *later = segments
    with VideoSampler(load_miniature(lora=TUNED if tuned else None)) as sampler:
        video = sampler.start_video(parse_prompt(first.prompt), seed, config, first.blocks * config.block)
        for segment in later:
            scene = parse_prompt(segment.prompt)
            video = sampler.switch_video(video, scene, Boundary.RECACHE, segment.blocks * config.block)
    return [Image.fromarray(frame.numpy()) for frame in to_bytes(video.pixels_FCHW)]


class Card:
    """A picture on a dark ground, drawn in the units of the finished one."""

    def __init__(self, width: int, height: int) -> None:
        self.size = width, height
        shade = Image.linear_gradient("L").resize((width * SCALE, height * SCALE))
        self.image = Image.composite(*(Image.new("RGB", shade.size, colour) for colour in (BOTTOM, TOP)), shade)
        self.draw = ImageDraw.Draw(self.image)

    def add_text(
        self, x: float, y: float, text: str, colour: str = FAINT, *, size: int = 15, bold: bool = False
    ) -> None:
        font = ImageFont.truetype(f"DejaVuSans{'-Bold' * bold}.ttf", size * SCALE)
        self.draw.text((x * SCALE, y * SCALE), text, colour, font, anchor="lm")

    def add_box(self, x: float, y: float, width: float, height: float, colour: str, *, radius: float = 5) -> None:
        box = [value * SCALE for value in (x, y, x + width, y + height)]
        self.draw.rounded_rectangle(box, radius * SCALE, colour)

    def add_line(self, points: Sequence[tuple[float, float]], colour: str, width: float = 2) -> None:
        self.draw.line([(x * SCALE, y * SCALE) for x, y in points], colour, round(width * SCALE), joint="curve")

    def add_frame(self, x: float, y: float, side: float, frame: Image.Image, *, radius: float = 8) -> None:
        large = frame.resize((round(side * SCALE),) * 2, Image.Resampling.LANCZOS)
        mask = Image.new("L", large.size)
        ImageDraw.Draw(mask).rounded_rectangle([0, 0, *large.size], radius * SCALE, 255)
        self.image.paste(large, (round(x * SCALE), round(y * SCALE)), mask)

    def finish(self) -> Image.Image:
        return self.image.resize(self.size, Image.Resampling.LANCZOS)


# The film of the README: the picture, the prompts with the present one lit, a ruler with a play-head.

WIDTH, HEIGHT, SIDE, EDGE = 880, 470, 320, 24
RULER_Y, THUMB = 374, 52


def draw_film(path: Path) -> None:
    segments = parse_timeline(DEMO_SCRIPT)
    frames = sample_film(segments, 0)  # the seed of `longlive demo`
    ends = [*accumulate(segment.blocks / sum(s.blocks for s in segments) for segment in segments)]
    pictures = [draw_moment(frames, segments, ends, at) for at in range(0, len(frames), 2)]
    pictures[0].save(
        path,
        save_all=True,
        append_images=pictures[1:],
        duration=2000 // FPS,
        loop=0,
        quality=85,
        method=4,
        kmin=4,
        kmax=8,
    )


def draw_moment(
    frames: Sequence[Image.Image], segments: Sequence[Segment], ends: Sequence[float], at: int
) -> Image.Image:
    card, time, ruler = Card(WIDTH, HEIGHT), at / len(frames), WIDTH - 2 * EDGE
    card.add_frame(EDGE, EDGE, SIDE, frames[at], radius=12)
    present = sum(end <= time for end in ends)
    step, x, begin = SIDE / len(segments), EDGE + SIDE + EDGE, 0.0
    for i, (segment, end) in enumerate(zip(segments, ends, strict=True)):
        y, is_present = EDGE + i * step, i == present
        card.add_box(x, y + 5, WIDTH - EDGE - x, step - 10, CARD if is_present else TOP)
        if is_present:
            card.add_box(x, y + 5, 4, step - 10, ACCENT, radius=2)
        card.add_text(x + 18, y + step / 2, segment.prompt, INK if is_present else FAINT, size=15)
        card.add_box(
            EDGE + begin * ruler + 1, RULER_Y - 14, (end - begin) * ruler - 2, 5, ACCENT if is_present else CARD
        )
        begin = end
    count = ruler // (THUMB + 2)
    for i in range(count):
        card.add_frame(
            EDGE + i * ruler / count, RULER_Y, THUMB, frames[(2 * i + 1) * len(frames) // (2 * count)], radius=4
        )
    seconds = len(frames) / FPS
    for second in range(0, int(seconds), 5):
        card.add_text(EDGE + second / seconds * ruler, RULER_Y + THUMB + 16, f"{second} s", size=12)
    head = EDGE + time * ruler
    card.add_line([(head, RULER_Y - 18), (head, RULER_Y + THUMB + 4)], INK, 2)
    return card.finish()


# The thumbnails of the workflows.

TITLES = {
    "1_one_prompt": ("One prompt", "text to a five second video"),
    "2_three_prompts_chain": ("Three prompts, a chain", "one video, two switches by recache"),
    "3_three_prompts_timeline": ("Three prompts, a timeline", "the same video, written as a script"),
    "4_two_endings": ("Two endings", "one beginning, two branches"),
    "5_save_load_continue": ("Save, load, continue", "go on another day, from any moment"),
    "6_tune_the_miniature": ("Tune the miniature", "it learns from its own long videos"),
    "7_direct_live": ("Direct a video", "watch it grow, type what comes next"),
    "8_rolling_forcing": ("Rolling Forcing", "five blocks at once, each a step behind"),
}


def start_thumbnail(title: str, subtitle: str) -> Card:
    card = Card(640, 400)
    card.add_text(40, 52, title, INK, size=27, bold=True)
    card.add_text(40, 88, subtitle)
    return card


def add_row(card: Card, x: float, y: float, side: float, frames: Sequence[Image.Image]) -> None:
    for i, frame in enumerate(frames):
        card.add_frame(x + i * (side + 6), y, side, frame)


def draw_thumbnails(folder: Path, curve: Path | None) -> None:
    three = sample_film([Segment(prompt, 7) for prompt in (RED, BLUE, SQUARE)], SEED)
    pairs = [[three[end - 60], three[end - 14]] for end in (81, 165, 249)]
    cards = {name: start_thumbnail(*words) for name, words in TITLES.items()}

    card = cards["1_one_prompt"]
    add_row(card, 40, 150, 135, three[4:80:22])
    card.add_text(40, 316, f"“{RED}”")

    card = cards["2_three_prompts_chain"]
    for i, (pair, words) in enumerate(
        zip(pairs, ("red ring, night", "blue ring, dusk", "blue square, day"), strict=True)
    ):
        add_row(card, 40 + 192 * i, 170, 86, pair)
        card.add_text(40 + 192 * i, 284, words, size=14)
        if i:
            card.add_line([(32 + 192 * i - 4, 213), (32 + 192 * i + 4, 213)], INK)

    card = cards["3_three_prompts_timeline"]
    for i, (prompt, colour) in enumerate(zip((RED, BLUE, SQUARE), ("#e5484d", "#4666e5", "#9fc6df"), strict=True)):
        card.add_box(40, 124 + 36 * i, 560, 29, CARD, radius=3)
        card.add_box(40, 124 + 36 * i, 6, 29, colour, radius=2)
        card.add_text(60, 138.5 + 36 * i, f"5s | {prompt}", INK, size=14)
    add_row(card, 40, 254, 88, [frame for pair in pairs for frame in pair])

    card = cards["4_two_endings"]
    add_row(card, 40, 200, 100, pairs[0])
    for y, ending in ((130, YELLOW), (266, STILL)):
        frames = sample_film([Segment(RED, 7), Segment(ending, 7)], SEED)
        card.add_line([(258, 250), (336, y + 50)], FAINT)
        add_row(card, 346, y, 100, [frames[110], frames[150]])

    card = cards["5_save_load_continue"]
    add_row(card, 40, 168, 104, pairs[0])
    card.add_box(280, 186, 64, 64, "#3a4150")
    card.add_box(295, 186, 32, 22, FAINT, radius=2)
    card.add_box(292, 218, 40, 32, "#596273", radius=2)
    card.add_text(278, 272, "my_film", size=14)
    add_row(card, 374, 168, 104, pairs[1])

    if curve:
        card = cards["6_tune_the_miniature"]
        lines = [json.loads(line) for line in curve.read_text().splitlines()]
        for y, name, colour in ((134, "student", "#f2914b"), (274, "critic", "#6aa8f0")):
            card.add_text(40, y - 12, name, size=13)
            card.add_box(40, y, 210, 104, CARD)
            card.add_line(trace([line[name] for line in lines if name in line], 50, y + 10, 190, 84), colour)
        after = sample_film([Segment(RED, 7), Segment(BLUE, 7)], SEED, tuned=True)
        for y, words, frames in ((134, "before", three), (274, "after", after)):
            card.add_text(290, y - 12, words, size=13)
            add_row(card, 290, y, 104, [frames[20], frames[60], frames[150]])

    else:
        del cards["6_tune_the_miniature"]

    card = cards["7_direct_live"]
    card.add_frame(40, 118, 180, three[235])
    add_row(card, 240, 118, 116, [three[60], three[110], three[150]])
    for x, width, colour in ((240, 130, "#e5484d"), (372, 104, "#4666e5"), (478, 46, "#9fc6df")):
        card.add_box(x, 256, width, 8, colour, radius=3)
    card.add_box(523, 248, 2, 24, INK)
    card.add_box(40, 316, 560, 44, CARD, radius=6)
    card.add_text(58, 338, "a yellow triangle moves up by day", INK, size=16)
    card.add_box(530, 324, 60, 28, "#7fc97f", radius=5)
    card.add_text(542, 338, "Send", "#10151c", size=14, bold=True)

    draw_rolling(cards["8_rolling_forcing"], three)

    for name, card in cards.items():
        card.finish().save(folder / f"{name}.jpg", quality=90)


def draw_rolling(card: Card, frames: Sequence[Image.Image]) -> None:
    """Draw a finished block, and those in flight behind it under more and more noise."""
    generator = torch.Generator().manual_seed(SEED)
    for i, frame in enumerate(frames[4:76:12]):
        noise = torch.randint(256, (frame.height, frame.width, 3), dtype=torch.uint8, generator=generator)
        card.add_frame(40 + 94 * i, 156, 88, Image.blend(frame, Image.fromarray(noise.numpy()), i / 5))
    card.add_text(40, 276, "finished", size=14)
    card.add_line([(134, 258), (598, 258)], FAINT)
    card.add_text(134, 276, "in flight", size=14)


def trace(values: Sequence[float], x: float, y: float, width: float, height: float, points: int = 24) -> list:
    """Average values over spans, and place them as points of a line."""
    spans = [values[i * len(values) // points : (i + 1) * len(values) // points] for i in range(points)]
    means = [sum(span) / len(span) for span in spans if span]
    low, high = min(means), max(means)
    return [
        (x + i * width / (len(means) - 1), y + height * (high - mean) / (high - low)) for i, mean in enumerate(means)
    ]


if __name__ == "__main__":
    draw_film(ROOT / "docs" / "images" / "film.webp")
    draw_thumbnails(ROOT / "workflows", Path(sys.argv[1]) if sys.argv[1:] else None)
