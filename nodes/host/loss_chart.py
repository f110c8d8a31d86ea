"""The loss curve of a tuning as a picture: the losses of student and critic.

Knows numbers and pixels, neither ComfyUI nor tensors.
"""

import math
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

CHART_WIDTH, CHART_HEIGHT = 720, 480
SUPERSAMPLING = 2  # the picture is drawn this many times as large, for smooth lines
LEFT, RIGHT, TOP, BOTTOM, BETWEEN = 76, 20, 60, 46, 48  # pixels around the panels
TITLE_Y = 20  # middle of the title, from the top
PANELS = (("student", "student loss", "#c2410c"), ("critic", "critic loss", "#1d4ed8"))
BACKGROUND, INK, FAINT, GRID_LINES = "#ffffff", "#1f2937", "#6b7280", "#e5e7eb"
TICKS = 4
SMOOTHING_SPANS = 20  # the average spans one 20th of the points

Points = Sequence[tuple[int, float]]  # step, value


def draw_chart(figures: Sequence[Mapping[str, float]], last_step: int, title: str) -> Image.Image:
    """Draw the lines of a metrics log, with room up to the last step."""
    image = Image.new("RGB", (CHART_WIDTH * SUPERSAMPLING, CHART_HEIGHT * SUPERSAMPLING), BACKGROUND)
    pen = Pen(ImageDraw.Draw(image))
    pen.text((LEFT, TITLE_Y), title, INK, size=15, anchor="lm")
    pen.text((CHART_WIDTH - RIGHT, TITLE_Y), "thin: each step, thick: smoothed", FAINT, anchor="rm")
    height = (CHART_HEIGHT - TOP - BOTTOM - BETWEEN * (len(PANELS) - 1)) / len(PANELS)
    for i, (name, label, colour) in enumerate(PANELS):
        points = [(int(line["step"]), line[name]) for line in figures if name in line]
        top = TOP + i * (height + BETWEEN)
        draw_panel(pen, points, max(last_step, 1), (LEFT, top, CHART_WIDTH - RIGHT, top + height), label, colour)
    pen.text(((LEFT + CHART_WIDTH - RIGHT) / 2, CHART_HEIGHT - BOTTOM / 3), "step", INK, anchor="mm")
    return image.resize((CHART_WIDTH, CHART_HEIGHT), Image.Resampling.LANCZOS)


class Pen:
    """Draws in pixel coordinates of the finished picture."""

    def __init__(self, draw: ImageDraw.ImageDraw) -> None:
        self.draw = draw

    def line(self, points: Sequence[tuple[float, float]], colour: str, width: float = 1) -> None:
        scaled = [(x * SUPERSAMPLING, y * SUPERSAMPLING) for x, y in points]
        self.draw.line(scaled, fill=colour, width=round(width * SUPERSAMPLING), joint="curve")

    def dot(self, x: float, y: float, colour: str, radius: float = 2.5) -> None:
        box = [(value + side) * SUPERSAMPLING for side in (-radius, radius) for value in (x, y)]
        self.draw.ellipse(box, fill=colour)

    def text(self, at: tuple[float, float], text: str, colour: str, *, size: int = 12, anchor: str) -> None:
        font = ImageFont.load_default(size * SUPERSAMPLING)
        self.draw.text((at[0] * SUPERSAMPLING, at[1] * SUPERSAMPLING), text, fill=colour, font=font, anchor=anchor)


def draw_panel(
    pen: Pen, points: Points, last_step: int, box: tuple[float, float, float, float], label: str, colour: str
) -> None:
    """Draw one loss curve with its axes; `box` is left, top, right, bottom."""
    left, top, right, bottom = box
    marks = choose_ticks([value for _, value in points] or [0.0, 1.0])
    low, high = marks[0], marks[-1]

    def place(step: float, value: float) -> tuple[float, float]:
        return left + (right - left) * step / last_step, bottom - (bottom - top) * (value - low) / (high - low)

    for mark in marks:
        pen.line([place(0, mark), place(last_step, mark)], GRID_LINES)
        pen.text((left - 8, place(0, mark)[1]), f"{mark:.4g}", FAINT, anchor="rm")
    for step in sorted({round(mark) for mark in choose_ticks([0, last_step]) if mark <= last_step}):
        pen.text((place(step, low)[0], bottom + 12), f"{step}", FAINT, anchor="mm")
    pen.line([(left, top), (left, bottom), (right, bottom)], FAINT)
    pen.text((left, top - 10), label, colour, size=13, anchor="lm")

    if len(points) == 1:
        pen.dot(*place(*points[0]), colour)
    if len(points) > 1:
        pen.line([place(*point) for point in points], lighten(colour))
        pen.line([place(*point) for point in smooth(points)], colour, 2.2)


def smooth(points: Points) -> Points:
    """Take an exponential average, unbiased from the first point on."""
    keep = 1 - 1 / max(1.0, len(points) / SMOOTHING_SPANS)
    average, total, weight = [], 0.0, 0.0
    for step, value in points:
        total, weight = keep * total + value, keep * weight + 1
        average.append((step, total / weight))
    return average


def choose_ticks(values: Sequence[float]) -> list[float]:
    """Choose round numbers, evenly spaced, from below the least value to above the greatest."""
    low, high = min(values), max(values)
    spread = high - low or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(spread / TICKS))
    step = next(power * factor for factor in (1, 2, 5, 10, 20) if power * factor * TICKS >= spread)
    first, last = math.floor(low / step), max(math.ceil(high / step), math.floor(low / step) + 1)
    return [step * number for number in range(first, last + 1)]


def lighten(colour: str) -> str:
    channels = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{(channel + 2 * 255) // 3:02x}" for channel in channels)
