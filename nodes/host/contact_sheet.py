"""A contact sheet: a frame for each second of a video, below the prompts that they show.

Knows numbers and pixels, not ComfyUI.
"""

import math
from bisect import bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

MAX_STILLS = 240  # of a longer video every second, third, … second is shown
MIN_PER_ROW, MAX_PER_ROW = 4, 8  # stills
STILL_WIDTH, MIN_STILL_WIDTH = 160, 128  # pixels; smaller pictures are enlarged to the second
STILL_GAP, MARGIN = 6, 12  # pixels
LINE_HEIGHT, TEXT_SIZE, TIME_SIZE = 20, 14, 11  # pixels of a line of text and of its letters; of a still's time
PROMPT_LINES = 2
PAPER, PROMPT_COLOUR, TIME_COLOUR, FAULT_COLOUR, SWITCH_COLOUR = "#18181b", "#f4f4f5", "#a1a1aa", "#f87171", "#7fc97f"


@dataclass(frozen=True, slots=True)
class Caption:
    """What begins at a pixel frame: how its segment begins, and its prompt."""

    frame: int
    how: str
    prompt: str


@dataclass(frozen=True, slots=True)
class Still:
    frame: int
    picture: Image.Image


class ContactSheet:
    """Collects stills while a video passes by. Memory does not grow with its length."""

    def __init__(self, num_frames: int, second: int) -> None:
        """`num_frames` are the pixel frames of the whole video, `second` those of a second."""
        seconds = -(-num_frames // second)
        self.second = second
        self.apart = second * max(1, -(-seconds // MAX_STILLS))  # pixel frames from still to still
        self.stills: list[Still] = []

    def add(self, bytes_FHW3: Tensor, first_frame: int) -> None:
        """Take the stills among the next pixel frames."""
        for i in range(-first_frame % self.apart, len(bytes_FHW3), self.apart):
            rows, columns = bytes_FHW3.shape[1:3]
            width = min(STILL_WIDTH, max(MIN_STILL_WIDTH, columns))
            picture = Image.fromarray(bytes_FHW3[i].numpy())
            shrunk = picture.resize((width, round(width * rows / columns)), Image.Resampling.LANCZOS)
            self.stills.append(Still(first_frame + i, shrunk))

    def draw(self, captions: Sequence[Caption], faults: Collection[int] = ()) -> Image.Image:
        """Draw all stills, below the caption of their segment; those with pixel frames in `faults` get a red frame."""
        width, height = self.stills[0].picture.size
        most = max(len(self._list_stills(caption, captions)) for caption in captions)
        per_row = min(MAX_PER_ROW, max(MIN_PER_ROW, most))
        sheet_width = 2 * MARGIN + per_row * (width + STILL_GAP) - STILL_GAP
        row = height + TIME_SIZE + 2 * STILL_GAP
        rows = [(caption, split_lines(caption.prompt, sheet_width - 2 * MARGIN), self._list_stills(caption, captions))
                for caption in captions]  # fmt: skip
        heights = [
            LINE_HEIGHT * (1 + len(lines)) + row * -(-len(stills) // per_row) + STILL_GAP for _, lines, stills in rows
        ]
        sheet = Image.new("RGB", (sheet_width, 2 * MARGIN + sum(heights)), PAPER)
        pen, top = ImageDraw.Draw(sheet), MARGIN
        for (caption, lines, stills), segment_height in zip(rows, heights, strict=True):
            self._draw_caption(pen, top, caption, lines)
            first_top = top + LINE_HEIGHT * (1 + len(lines))
            for number, still in enumerate(stills):
                left = MARGIN + number % per_row * (width + STILL_GAP)
                is_faulty = any(still.frame <= frame < still.frame + self.apart for frame in faults)
                self._draw_still(sheet, (left, first_top + number // per_row * row), still, is_faulty)
            top += segment_height
        return sheet

    def _list_stills(self, caption: Caption, captions: Sequence[Caption]) -> list[Still]:
        """List the stills from the beginning of a segment to that of the next."""
        end = min((other.frame for other in captions if other.frame > caption.frame), default=math.inf)
        return [still for still in self.stills if caption.frame <= still.frame < end]

    def _draw_caption(self, pen: ImageDraw.ImageDraw, top: int, caption: Caption, lines: Sequence[str]) -> None:
        if caption.frame:
            left, bottom = MARGIN // 3, top + LINE_HEIGHT * (1 + len(lines)) - 4
            pen.rectangle((left, top + 2, left + 3, bottom), fill=SWITCH_COLOUR)
        head = f"{spell_time(caption.frame / self.second)}   {caption.how}"
        write_words(pen, (MARGIN, top), head, SWITCH_COLOUR, TEXT_SIZE)
        for number, line in enumerate(lines, start=1):
            write_words(pen, (MARGIN, top + LINE_HEIGHT * number), line, PROMPT_COLOUR, TEXT_SIZE)

    def _draw_still(self, sheet: Image.Image, at: tuple[int, int], still: Still, is_faulty: bool) -> None:
        (left, top), (width, height) = at, still.picture.size
        pen = ImageDraw.Draw(sheet)
        sheet.paste(still.picture, at)
        if is_faulty:
            pen.rectangle((left - 2, top - 2, left + width + 1, top + height + 1), outline=FAULT_COLOUR, width=2)
        write_words(pen, (left, top + height + 3), spell_time(still.frame / self.second), TIME_COLOUR, TIME_SIZE)


def write_words(pen: ImageDraw.ImageDraw, at: tuple[int, int], text: str, colour: str, size: int) -> None:
    pen.text(at, text, fill=colour, font=ImageFont.load_default(size))


def split_lines(text: str, width: int) -> list[str]:
    """Break a text into at most PROMPT_LINES lines of `width` pixels; what is too long ends in dots."""
    font = ImageFont.load_default(TEXT_SIZE)
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if len(longer) <= width and font.getlength(longer) <= width:
            lines[-1] = longer
        elif len(lines) == PROMPT_LINES:
            lines[-1] = shorten_line(longer, width)
            break
        else:
            lines.append(shorten_line(word, width))
    return lines


def shorten_line(text: str, width: int) -> str:
    """Cut a text so that it is at most `width` pixels wide; what is cut ends in dots."""
    font = ImageFont.load_default(TEXT_SIZE)
    text = text[: width + 1]  # no letter is narrower than a pixel
    if font.getlength(text) <= width:
        return text
    lengths = range(len(text))
    return f"{text[: bisect_right(lengths, width, key=lambda n: font.getlength(f'{text[:n]}…')) - 1]}…"


def spell_time(seconds: float) -> str:
    """Write a time as minutes and seconds: 1:07, or 0:03.8."""
    minutes, rest = divmod(round(seconds * 10), 600)
    tenths = f".{rest % 10}" if rest % 10 else ""
    return f"{minutes}:{rest // 10:02}{tenths}"
