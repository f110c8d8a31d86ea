"""What is decided of a video while it grows: the prompts that stand, and those that wait for their block.

Knows sessions, not how their blocks are made.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace

from ..errors import MessageError
from ..rollout.sampler import check_timeline
from ..session.boundary import Blend, Boundary
from ..session.prompt import Prompt, encode_prompt_mix
from ..session.script import write_script
from ..session.session import Session
from ..session.switch import Switch
from ..session.timeline import MAX_CHARACTERS, parse_timeline
from ..units import convert_blocks_to_seconds
from .decision import Decision, list_decisions, plan_segments
from .messages import MAX_PROMPT, Reseed, Say
from .pace import Status
from .take import Plan

PROMPTS_KEPT = 64  # embeddings by text
MAX_LATER = 64  # prompts that wait, those of the script not counted
SPARE_CHARACTERS = 3 * MAX_PROMPT  # of a script: for the words before each prompt, and for one more


class Direction:
    """Owns the newest state of a session, and decides under which prompt and seed its next block is made.

    `plan` is what the video is to begin with. Raises TimelineError, PositionError or ConditioningError if that cannot
    be made.
    """

    def __init__(self, session: Session, encode: Callable[[str], Prompt], plan: Plan) -> None:
        self.session, self._encode = session, encode
        self.begins = len(session.blocks)  # the first block that is directed
        self.urgent_end = self.begins  # blocks before it are made without waiting for a viewer
        self._script, self.script_end = plan.script, self.begins  # that the video begins with, and the block after it
        self.stop_block = plan.stop_block  # the first block that is not to be made
        self._waiting: list[Decision] = []  # by block
        self._prompts: OrderedDict[str, Prompt] = OrderedDict()  # by text, used last at the end
        if plan.script.strip():
            segments = parse_timeline(plan.script, session.config.block)
            check_timeline(session, segments)
            self._waiting = plan_segments(segments, self.begins)
            self.script_end += sum(segment.blocks for segment in segments)
        for decision in plan.waiting:
            self._keep(decision)
        self.urgent_end = max(self.script_end, plan.urgent_end)
        for decision in self._waiting:
            self.read_prompt(decision.text)

    @property
    def end(self) -> int:
        """The block that is made next."""
        return len(self.session.blocks)

    @property
    def block_seconds(self) -> float:
        return convert_blocks_to_seconds(1, self.session.config.block)

    @property
    def seconds(self) -> float:
        return self.end * self.block_seconds

    @property
    def has_prompt(self) -> bool:
        """Whether a prompt was said since the video is directed; one without a text has no place in a script."""
        switches = self.session.switches
        return bool(switches and switches[-1].prompt.text) and self._is_directed(switches[-1])

    @property
    def is_urgent(self) -> bool:
        return self.end < self.urgent_end

    @property
    def is_stopped(self) -> bool:
        return self.stop_block is not None and (self.end >= self.stop_block or not self.has_prompt)

    def find_end(self, limit: int | None) -> int | None:
        """Find the number of blocks with which a rolling video ends, if that is known: none begins behind them.

        `limit` is the largest number. No block that has begun is left out, and before a cut nothing ends.
        """
        known = [end for end in (self.stop_block, limit) if end is not None]
        end = max(min(known), self.session.num_begun) if known else None
        cuts = (each.block for each in self._waiting if each.boundary is Boundary.CUT)
        return None if end is None or any(block < end for block in cuts) else end

    @property
    def script(self) -> str:
        """The script of what was directed so far; empty without a block."""
        begins = self.begins * self.session.config.block
        return write_script(self.session, begins) if self.end > self.begins else ""

    @property
    def recorded_script(self) -> str:
        """The script that is kept of the run: the whole one that the video begins with, until that is made."""
        return self._script if self.end < self.script_end else self.script

    def plan(self, status: Status) -> Plan:
        """Return all that another process needs to go on from here."""
        return Plan(self.recorded_script, tuple(self.list_waiting()), self.urgent_end, self.stop_block, status)

    def list_waiting(self) -> list[Decision]:
        """List the decisions that have not begun; the first one may begin with the next block."""
        return [*(each for each in list_decisions(self.session)[-1:] if each.block == self.end), *self._waiting]

    def say(self, said: Say) -> None:
        """Let a prompt begin with the next block, or when it is to; never before the end of the script.

        A second prompt for one block replaces the first. Raises ConditioningError for one that cannot be encoded, and
        MessageError if the script has no room for it, or if too many wait. Nothing is changed then.
        """
        if len(self.script) + sum(len(each.text) for each in self.list_waiting()) > MAX_CHARACTERS - SPARE_CHARACTERS:
            raise MessageError(f"the script of this video is full ({MAX_CHARACTERS:,} characters); begin another video")
        next_block = max(self.end, self.script_end)
        block = next_block if said.at is None else max(next_block, round(said.at / self.block_seconds))
        if sum(each.block >= self.script_end for each in self._waiting) >= MAX_LATER:
            raise MessageError(f"{MAX_LATER} prompts wait for their time; say more when the first of them have begun")
        decision = Decision(block, said.prompt, said.boundary, said.seed, said.blend)
        self.read_prompt(decision.text)
        self._keep(decision)
        self.begin_due()

    def begin_due(self) -> None:
        """Let what waits for the next block stand."""
        while self._waiting and self._waiting[0].block <= self.end:
            due = self._waiting.pop(0)
            self._switch(self.read_prompt(due.text), due.boundary, due.seed, due.blend)

    def check_rewind(self, block: int) -> None:
        """Check that the video can go back to the start of a block. Raises MessageError or SessionError."""
        if not self.begins <= block <= self.end:
            raise MessageError(f"cannot rewind to block {block}; use a block from {self.begins} to {self.end}")
        self.session.rewound_to(block * self.session.config.block)

    def rewind(self, block: int) -> None:
        """Go back to the start of a block; what was decided there stands until something else is said.

        Raises what `check_rewind` raises.
        """
        self.check_rewind(block)
        frame = block * self.session.config.block
        there = next((switch for switch in self.session.switches if switch.frame == frame), None)
        self.session = self.session.rewound_to(frame)
        if there and frame:
            self._switch(there.prompt, there.boundary, there.seed, there.blend)
        self.urgent_end, self.script_end = min(self.urgent_end, block), min(self.script_end, block)

    def reseed(self, seed: int) -> None:
        """Use other noise from the next block on. Raises MessageError before the first prompt, or within the script."""
        seed = Reseed(seed).seed
        if self.end < self.script_end:
            raise MessageError("the script is not made to its end yet; give a new seed then, or rewind first")
        if not self.session.switches:
            raise MessageError("there is no prompt yet; give the seed together with the first one")
        last = self.session.switches[-1]
        if self._is_next(last):
            self._switch(last.prompt, last.boundary, seed, last.blend)
            return
        done = self.end - last.frame // self.session.config.block
        left = last.blend.blocks - done if last.blend else 0
        if last.blend and left > 0:
            self._switch(last.prompt, Boundary.RECACHE, seed, replace(last.blend, blocks=left))
        else:
            self._switch(last.prompt, Boundary.KEEP, seed, None)

    def stop(self, at: float | None) -> None:
        """Make no block from here on, or from `at` seconds of the video on."""
        self.stop_block = self.end if at is None else max(self.end, round(at / self.block_seconds))

    def finish(self) -> None:
        """Stop when all that was said has begun, and each blend has reached its end. Do not wait for viewers."""
        if self.stop_block is None:
            ends = [decision.end for decision in [*list_decisions(self.session)[-1:], *self._waiting]]
            self.stop_block = max([self.end, self.urgent_end, *ends])
        self.urgent_end = self.stop_block

    def read_prompt(self, text: str) -> Prompt:
        """Encode a text, or find what it was encoded to. Raises ConditioningError."""
        prompt = self._prompts.pop(text, None) or encode_prompt_mix(text, self._encode)
        self._prompts[text] = prompt
        if len(self._prompts) > PROMPTS_KEPT:
            self._prompts.popitem(last=False)
        return prompt

    def _keep(self, decision: Decision) -> None:
        """Let a decision wait for its block. It replaces another one for this block."""
        others = [other for other in self._waiting if other.block != decision.block]
        self._waiting = sorted([*others, decision], key=lambda each: each.block)

    def _switch(self, prompt: Prompt, boundary: Boundary, seed: int | None, blend: Blend | None) -> None:
        """Let a prompt begin with the next block. Without a seed, one that was given for this block stands."""
        if not prompt.text:
            raise MessageError("the prompt has no text, so no script can hold it; say a prompt")
        if seed is None and self.session.switches and self._is_next(self.session.switches[-1]):
            seed = self.session.switches[-1].seed
        self.session = self.session.switched_to(prompt, boundary, seed=seed, blend=blend)

    def _is_directed(self, switch: Switch) -> bool:
        return switch.frame >= self.begins * self.session.config.block

    def _is_next(self, switch: Switch) -> bool:
        return switch.frame == self.session.num_frames
