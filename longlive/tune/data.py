"""The prompts that are tuned on: a video begins under the first of a pair and goes on under the second (LongLive §3.2).

Knows no tensor and no language model: `write_requests` asks for continuations in a file that any model can answer, and
`read_answers` checks what came back. The checks read English.
"""

import hashlib
import itertools
import json
import math
import re
import reprlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError
from ..files import read_text, write_text
from ..untrusted import brief, parse_json

JSONL = ".jsonl"
NEWLINE = re.compile(r"\r\n|\r|\n")  # not str.splitlines: a prompt in JSON may hold U+2028
ARROW = re.compile(r"(?<!-)-+>|(?<!=)=+>|→")  # tried once a run of dashes: a long one takes no longer
MAX_BYTES = 1 << 30  # of a file of prompts; VidProM's are 200 MB

SHORTEST, LONGEST = 0.5, 2  # an answer, in lengths of its prompt
MAX_WORDS = 250
OPENING_WORDS = 12  # of a prompt: they name its subject
SHARED = 0.25  # of them that an answer repeats at least
STOP_WORDS = frozenset(
    "about above after again against all along also and another any are because been before behind being below "
    "beneath beside between both but during each few finally first for from had has have having her here hers him his "
    "how into its just like more most near next not now once onto other our over own same second she some still such "
    "than that the their them then there these they this those through toward towards under until upon very was were "
    "what when where which while who whose will with within without you your".split()
)
STEPS = re.compile(r"\b(?:then|after that|finally|first(?:ly)?|second(?:ly)?)\b(?!-)", re.IGNORECASE)

PLACE = "{prompt}"  # in a template
TEMPLATE = """\
You write prompts for a model that makes video from text. The prompt below describes the first seconds of a video. \
Write the prompt for the seconds that follow in the same video.

- Keep the subject, the place and the visual style, and describe them again in full: the model reads your prompt alone.
- Add exactly one new action, something that can be seen within a few seconds.
- Use about as many words as the prompt below, in one paragraph.
- Answer with the new prompt alone: no title, no quotation marks, no explanation.

Prompt: {prompt}"""


@dataclass(frozen=True, slots=True)
class PromptPair:
    """A video begins under `first` and goes on under `second`; with both the same it never switches."""

    first: str
    second: str


def read_pairs(path: Path, second: Path | None = None, *, limit: int = MAX_BYTES) -> tuple[PromptPair, ...]:
    """The pairs of a .jsonl file, or of text with a prompt a line that goes on as the same line of `second` says.

    A line of .jsonl is `{"prompts": [first, second]}`; of more than two prompts each is paired with the next, and one
    alone never switches, like a text file without `second`. A file has at most `limit` bytes.
    """
    if second is None and path.suffix.lower() == JSONL:
        return tuple(pair for where, entry in _entries(path, limit) for pair in _chain(entry.get("prompts"), where))
    if second is not None and JSONL in (path.suffix.lower(), second.suffix.lower()):
        raise DataError(f"{path} and {second} cannot be paired: a {JSONL} file holds whole pairs, so give it alone")
    prompts = _prompts(path, limit)
    following = _prompts(second, limit) if second else prompts
    if len(prompts) != len(following):
        missing = abs(len(prompts) - len(following))
        counts = f"{path} has {len(prompts)} lines and {second} {len(following)}"
        raise DataError(f"{counts}; a pair needs the same line in both, so add or remove {missing}")
    return tuple(map(PromptPair, prompts, following))


def parsed_pairs(text: str) -> tuple[PromptPair, ...]:
    """The pairs of a text as people type it: `first -> second` a line, or one prompt; `#` begins a comment line."""
    lines = [line.strip() for line in NEWLINE.split(text.removeprefix("\ufeff"))]
    pairs = tuple(
        pair
        for number, line in enumerate(lines, start=1)
        if line and not line.startswith("#")
        for pair in _chain(ARROW.split(line), f"line {number}")
    )
    if not pairs:
        raise DataError("the text has no prompts; write for example: a boat in the rain -> the boat in the rain sinks")
    return pairs


def order(count: int, seed: int, epoch: int) -> list[int]:
    """A shuffled order of `count` items, another in every epoch, the same on every machine and after a resume."""
    return sorted(range(count), key=lambda index: hashlib.sha256(f"{seed} {epoch} {index}".encode()).digest())


def requests(prompts: Sequence[str], template: str = TEMPLATE) -> Iterator[dict]:
    """One request a prompt for its continuation, as chat messages; ids count from 1."""
    if PLACE not in template:
        raise DataError(f"the template has no {PLACE}; write {PLACE} where the video's prompt belongs")
    numbered = [(number, _prompt(prompt, f"request {number}")) for number, prompt in enumerate(prompts, start=1)]
    return (
        {"id": number, "prompt": prompt, "messages": [{"role": "user", "content": template.replace(PLACE, prompt)}]}
        for number, prompt in numbered
    )


def write_requests(prompts: Sequence[str], path: Path, template: str = TEMPLATE) -> None:
    """Write the requests as JSONL."""
    _write(path, requests(prompts, template))


def read_answers(requests_path: Path, answers_path: Path) -> tuple[list[PromptPair], list[str]]:
    """The pairs of prompts and their good answers, in the order of the requests, and a sentence for each refusal."""
    prompts: dict[str, str] = {}
    for where, entry in _entries(requests_path):
        key = str(entry.get("id"))
        if "id" not in entry or key in prompts:
            raise DataError(f"{where} has no id of its own; write the requests again")
        prompts[key] = _prompt(entry.get("prompt"), where)

    answers: dict[str, str] = {}
    refusals = []
    for where, entry in _entries(answers_path):
        key = str(entry.get("id", "without an id"))
        if key not in prompts:
            refusals.append(f"answer {brief(key)} ({where}) belongs to no request in {requests_path}")
        elif key in answers:
            refusals.append(f"answer {brief(key)} ({where}) is one too many; the first with this id counts")
        else:
            answers[key] = _answer(entry)

    pairs = []
    for key, prompt in prompts.items():
        answer = answers.get(key, "")
        if problem := next(filter(None, (check(prompt, answer) for check in CHECKS)), None):
            refusals.append(f"answer {brief(key)} {problem}")
        else:
            pairs.append(PromptPair(prompt, answer))
    return pairs, refusals


def write_pairs(pairs: Iterable[PromptPair], path: Path) -> None:
    """Write pairs as `read_pairs` reads them."""
    _write(path, ({"prompts": [pair.first, pair.second]} for pair in pairs))


def check_length(prompt: str, answer: str) -> str | None:
    """What is wrong with the length of an answer."""
    if not answer:
        return "is missing"
    asked, words = len(prompt.split()), len(answer.split())
    low, high = math.ceil(SHORTEST * asked), min(LONGEST * asked, MAX_WORDS)
    return None if low <= words <= high else f"has {words} words; its prompt of {asked} asks for {low} to {high}"


def check_subject(prompt: str, answer: str) -> str | None:
    """Whether an answer left what its prompt begins with."""
    opening = _content_words(prompt)[:OPENING_WORDS]
    needed = max(1, math.ceil(SHARED * len(opening)))
    shared = len(set(opening) & set(_content_words(answer)))
    if shared >= needed:
        return None
    return f"leaves the subject: it shares {shared} of {', '.join(opening) or 'no words'}, and {needed} are needed"


def check_action(prompt: str, answer: str) -> str | None:
    """Whether an answer adds something other than one new action."""
    if len(lines := answer.splitlines()) > 1:
        return f"has {len(lines)} lines; a prompt is one"
    if not set(_content_words(answer)) - set(_content_words(prompt)):
        return "has no word its prompt lacks, so nothing new happens"
    steps = STEPS.findall(answer)
    return f"lists several actions ({' ... '.join(steps)}); one was asked for" if len(steps) > 1 else None


CHECKS = (check_length, check_subject, check_action)


def _content_words(text: str) -> list[str]:
    """The words of three letters or more that say something, each once."""
    words = re.findall(r"[^\W\d_]{3,}", text.lower())
    return list(dict.fromkeys(word for word in words if word not in STOP_WORDS))


def _answer(entry: dict) -> str:
    """What a model answered; empty where nothing is."""
    match entry:
        case {"answer": str(text)} | {"content": str(text)} | {"choices": [{"message": {"content": str(text)}}, *_]}:
            return text.strip()
    return ""


def _chain(prompts: object, where: str) -> list[PromptPair]:
    """Each prompt with the next one; one alone with itself."""
    if not isinstance(prompts, list) or not prompts:
        found = reprlib.repr(prompts)
        raise DataError(f'{where} has {found} where prompts belong; write {{"prompts": ["first", "second"]}}')
    checked = [_prompt(prompt, where) for prompt in prompts]
    return list(itertools.starmap(PromptPair, itertools.pairwise(checked))) or [PromptPair(*checked * 2)]


def _prompt(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where} has {reprlib.repr(value)} where a prompt belongs; write it as text in quotes")
    if not value.strip():
        raise DataError(f"{where} has an empty prompt; write a prompt there or remove the line")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair, which no tokenizer takes
        raise DataError(
            f"{where} has {reprlib.repr(value)}, which is not whole text; write the prompt again"
        ) from error
    return value.strip()


def _prompts(path: Path, limit: int) -> list[str]:
    return [_prompt(line, f"{path} line {number}") for number, line in enumerate(_lines(path, limit), start=1)]


def _entries(path: Path, limit: int = MAX_BYTES) -> Iterator[tuple[str, dict]]:
    """The objects of a JSONL file, each with the place to name in a message."""
    for number, line in enumerate(_lines(path, limit), start=1):
        where = f"{path} line {number}"
        if not line:
            continue
        try:
            entry = parse_json(line)
        except ValueError as error:
            raise DataError(f"{where} is not JSON ({error}); write one object a line") from error
        if not isinstance(entry, dict):
            raise DataError(f"{where} has {reprlib.repr(entry)} where an object belongs; write one in braces")
        yield where, entry


def _lines(path: Path, limit: int) -> list[str]:
    """The lines of a file without the blank ones at its end."""
    try:
        text = read_text(path, limit)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}); give a text file in UTF-8") from error
    if not text.strip():
        raise DataError(f"{path} is empty; it needs at least one line")
    return [line.strip() for line in NEWLINE.split(text.rstrip())]


def _write(path: Path, entries: Iterable[dict]) -> None:
    """Write JSONL so that `path` holds the old file or the whole new one, never a part."""
    text = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
    try:
        write_text(path, text)
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{path} cannot be written ({reason}); choose a folder you may write to") from error
