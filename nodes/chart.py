"""The curve of a tuning as a picture: how the losses of student and critic go, for a look in passing.

Knows figures and pixels, neither ComfyUI nor tensors.
"""

import math
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT = 720, 480
SHARPER = 2  # it is drawn so many times as large, for lines without steps
LEFT, RIGHT, TOP, BOTTOM, BETWEEN = 76, 20, 60, 46, 48  # pixels around the panels
TITLE = 20  # its middle, from the top
PANELS = (("student", "student loss", "#c2410c"), ("critic", "critic loss", "#1d4ed8"))
PAPER, INK, FAINT, GRID = "#ffffff", "#1f2937", "#6b7280", "#e5e7eb"
TICKS = 4
SMOOTHED_OVER = 20  # a smoothed curve follows about this part of all its points

Points = Sequence[tuple[int, float]]  # step, value


def drawn(figures: Sequence[Mapping[str, float]], last_step: int, title: str) -> Image.Image:
    """The picture of the lines of a curve file, with room up to the last step."""
    image = Image.new("RGB", (WIDTH * SHARPER, HEIGHT * SHARPER), PAPER)
    pen = Pen(ImageDraw.Draw(image))
    pen.text((LEFT, TITLE), title, INK, size=15, anchor="lm")
    pen.text((WIDTH - RIGHT, TITLE), "thin: each step, thick: smoothed", FAINT, anchor="rm")
    height = (HEIGHT - TOP - BOTTOM - BETWEEN * (len(PANELS) - 1)) / len(PANELS)
    for i, (name, label, colour) in enumerate(PANELS):
        points = [(int(line["step"]), line[name]) for line in figures if name in line]
        top = TOP + i * (height + BETWEEN)
        panel(pen, points, max(last_step, 1), (LEFT, top, WIDTH - RIGHT, top + height), label, colour)
    pen.text(((LEFT + WIDTH - RIGHT) / 2, HEIGHT - BOTTOM / 3), "step", INK, anchor="mm")
    return image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)


class Pen:
    """Draws in pixels of the finished picture."""

    def __init__(self, draw: ImageDraw.ImageDraw) -> None:
        self.draw = draw

    def line(self, points: Sequence[tuple[float, float]], colour: str, width: float = 1) -> None:
        scaled = [(x * SHARPER, y * SHARPER) for x, y in points]
        self.draw.line(scaled, fill=colour, width=round(width * SHARPER), joint="curve")

    def dot(self, x: float, y: float, colour: str, radius: float = 2.5) -> None:
        box = [(value + side) * SHARPER for side in (-radius, radius) for value in (x, y)]
        self.draw.ellipse(box, fill=colour)

    def text(self, place: tuple[float, float], text: str, colour: str, *, size: int = 12, anchor: str) -> None:
        font = ImageFont.load_default(size * SHARPER)
        self.draw.text((place[0] * SHARPER, place[1] * SHARPER), text, fill=colour, font=font, anchor=anchor)


def panel(
    pen: Pen, points: Points, last_step: int, box: tuple[float, float, float, float], label: str, colour: str
) -> None:
    """One curve with its axes; `box` is left, top, right, bottom."""
    left, top, right, bottom = box
    marks = ticks([value for _, value in points] or [0.0, 1.0])
    low, high = marks[0], marks[-1]

    def at(step: float, value: float) -> tuple[float, float]:
        return left + (right - left) * step / last_step, bottom - (bottom - top) * (value - low) / (high - low)

    for mark in marks:
        pen.line([at(0, mark), at(last_step, mark)], GRID)
        pen.text((left - 8, at(0, mark)[1]), f"{mark:.4g}", FAINT, anchor="rm")
    for step in sorted({round(mark) for mark in ticks([0, last_step]) if mark <= last_step}):
        pen.text((at(step, low)[0], bottom + 12), f"{step}", FAINT, anchor="mm")
    pen.line([(left, top), (left, bottom), (right, bottom)], FAINT)
    pen.text((left, top - 10), label, colour, size=13, anchor="lm")

    if len(points) == 1:
        pen.dot(*at(*points[0]), colour)
    if len(points) > 1:
        pen.line([at(*point) for point in points], paler(colour))
        pen.line([at(*point) for point in smoothed(points)], colour, 2.2)


def smoothed(points: Points) -> Points:
    """An exponential average, true from the first point on."""
    keep = 1 - 1 / max(1.0, len(points) / SMOOTHED_OVER)
    found, total, weight = [], 0.0, 0.0
    for step, value in points:
        total, weight = keep * total + value, keep * weight + 1
        found.append((step, total / weight))
    return found


def ticks(values: Sequence[float]) -> list[float]:
    """Round numbers, evenly spaced, from below the least value to above the greatest."""
    low, high = min(values), max(values)
    spread = high - low or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(spread / TICKS))
    step = next(power * factor for factor in (1, 2, 5, 10, 20) if power * factor * TICKS >= spread)
    first, last = math.floor(low / step), max(math.ceil(high / step), math.floor(low / step) + 1)
    return [step * number for number in range(first, last + 1)]


def paler(colour: str) -> str:
    channels = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{(channel + 2 * 255) // 3:02x}" for channel in channels)
