"""The script of a session: what was decided on the way to it, as a timeline that makes the same video again."""

from dataclasses import replace

from ..errors import SessionError, TimelineError
from .boundary import Boundary
from .session import Session
from .timeline import Segment, parse_timeline


def write_script(session: Session, start: int = 0) -> str:
    """Write the script of a session from frame `start` on, where a prompt begins: one line per segment, in blocks.

    Sampled from the same beginning, it gives the same latents under the same keys. A switch with no block after it is
    left out, and so is an end within a rolling video, which a script finishes only where it ends itself. Raises
    SessionError for a session without frames, and for a prompt that a line of a script cannot hold: an embedding
    without a text, or a text with line breaks.
    """
    if not session.blocks:
        raise SessionError("the session has no frames yet, so it has no script; sample a block first")
    ends = [*(switch.frame for switch in session.switches[1:]), session.num_frames]
    lines = []
    for switch, end in zip(session.switches, ends, strict=True):
        blocks = (end - switch.frame) // session.config.block
        if not blocks or switch.frame < start:
            continue
        boundary = switch.boundary if switch.frame else Boundary.RECACHE
        segment = Segment(switch.prompt.text, blocks, boundary, seed=switch.seed, blend=switch.blend)
        line = " ".join([f"{blocks}b", *str(segment).removeprefix(Boundary.RECACHE.word).split(), "|", segment.prompt])
        if not is_line_of(line, segment, session.config.block):
            begins = switch.frame // session.config.block
            raise SessionError(
                f"the prompt from block {begins} on has no text that a line of a script can hold; use prompts given as "
                f"text, without line breaks"
            )
        lines.append(f"{line}\n")
    return "".join(lines)


def is_line_of(line: str, segment: Segment, block: int) -> bool:
    """Return whether a line of a script says what a segment is, in blocks of `block` frames."""
    try:
        return parse_timeline(line, block) == (replace(segment, line=1, asked=f"{segment.blocks}b"),)
    except TimelineError:
        return False
