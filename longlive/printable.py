"""Text from outside, made fit for a message: one line, of bounded length, that moves no cursor."""

MAX_SHOWN = 200  # characters of a text from outside that a message shows
JOINERS = "\u200c\u200d"  # between letters of some scripts and parts of an emoji; they do no harm


def printable(text: str) -> str:
    """Give text with everything escaped that could move a terminal's cursor, colour it or turn its lines around."""
    return "".join(char if char.isprintable() or char in JOINERS else repr(char)[1:-1] for char in text)


def printable_lines(text: str) -> str:
    """The same for text of several lines, which stay lines."""
    return "\n".join(map(printable, text.split("\n")))


def brief(value: object, limit: int = MAX_SHOWN) -> str:
    """Give the text of a value for a message: printable, at most `limit` characters of it."""
    shown = printable(str(value)[: limit + 1])
    return shown if len(shown) <= limit else f"{shown[:limit]}..."
