"""A prompt and where it begins, as a page shows it and as a take keeps it."""

from dataclasses import asdict, dataclass

from ..config import check_seed
from ..session.boundary import Blend, Boundary, Curve
from ..session.session import Session
from ..session.timeline import BOUNDARIES, Segment
from ..untrusted import read_field

BLENDED = "blend"  # what a boundary is called that blends


@dataclass(frozen=True, slots=True)
class Decision:
    """A prompt from block `block` on."""

    block: int
    text: str
    boundary: Boundary = Boundary.RECACHE
    seed: int | None = None
    blend: Blend | None = None

    @classmethod
    def from_json(cls, value: object) -> "Decision":
        """Take what `as_json` gave. Raises ValueError or ConfigError for anything else."""
        word, blocks = read_field(value, "boundary", str), read_number(value, "blend")
        if word not in BOUNDARIES and word != BLENDED:
            raise ValueError(f"boundary is {word[:40]!r}")
        blend = Blend(blocks, read_field(value, "curve", Curve)) if word == BLENDED and blocks is not None else None
        seed, block = read_number(value, "seed"), read_field(value, "block", int)
        if seed is not None:
            check_seed(seed)
        if block < 0:
            raise ValueError(f"block is {block}")
        return cls(block, read_field(value, "text", str), BOUNDARIES.get(word, Boundary.RECACHE), seed, blend)

    @property
    def end(self) -> int:
        """The block after those that it takes at least: one, or those of its blend."""
        return self.block + (self.blend.blocks if self.blend else 1)

    def as_json(self) -> dict:
        return asdict(self) | {
            "boundary": BLENDED if self.blend else self.boundary.word,
            "blend": self.blend.blocks if self.blend else None,
            "curve": self.blend.curve.value if self.blend else Curve.LINEAR.value,
        }


def read_number(value: object, name: str) -> int | None:
    """Read a field that is a whole number or null. Raises ValueError for anything else."""
    is_null = isinstance(value, dict) and name in value and value[name] is None
    return None if is_null else read_field(value, name, int)


def list_decisions(session: Session) -> list[Decision]:
    """List what was decided of a video; the last decision may begin with the next block."""
    return [
        Decision(switch.frame // session.config.block, switch.prompt.text, switch.boundary, switch.seed, switch.blend)
        for switch in session.switches
    ]


def plan_segments(segments: tuple[Segment, ...], first_block: int) -> list[Decision]:
    """List the decisions of a script whose first segment begins at a block."""
    decisions, block = [], first_block
    for segment in segments:
        decisions.append(Decision(block, segment.prompt, segment.boundary, segment.seed, segment.blend))
        block += segment.blocks
    return decisions
