"""What happens to the KV cache where the prompt of a video changes (LongLive §3.1)."""

from enum import StrEnum


class Boundary(StrEnum):
    """What happens to the KV cache where a segment begins."""

    RECACHE = "recache"  # recompute the window under the new prompt, keep the sink
    RENEW = "renew"  # recompute the window under the new prompt, sink included
    KEEP = "keep"  # keep the KV cache, change only the text
    CUT = "discard"  # empty the KV cache, the sink included

    @property
    def word(self) -> str:
        """The word that a script has for it."""
        return "cut" if self is Boundary.CUT else self.value
