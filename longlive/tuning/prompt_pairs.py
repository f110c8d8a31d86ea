"""Prompt pairs to tune on: a video begins with the first prompt and switches to the second (LongLive §3.2).

Any language model can write the second prompts: `write_requests` writes requests to a file, and `read_answers` reads
and checks the answers. The checks assume English. Imports no torch.
"""

import hashlib
import itertools
import json
import math
import re
import reprlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ..errors import DataError, shorten
from ..files import read_text, write_text
from ..untrusted import parse_json

JSONL = ".jsonl"
NEWLINE = re.compile(r"\r\n|\r|\n")  # not str.splitlines: a prompt in JSON may hold U+2028
ARROW = re.compile(r"(?<!-)-+>|(?<!=)=+>|→")  # looks at each run of dashes once, so a long run is quick
MAX_PROMPTS_BYTES = 1 << 30  # of a file; VidProM's have 200 MB

MIN_LENGTH_RATIO, MAX_LENGTH_RATIO = 0.5, 2  # of an answer to its prompt, in words
MAX_WORDS = 250
OPENING_WORDS = 12  # of a prompt; they name its subject
MIN_SHARED = 0.25  # of them that an answer must repeat
STOP_WORDS = frozenset(
    "about above after again against all along also and another any are because been before behind being below "
    "beneath beside between both but during each few finally first for from had has have having her here hers him his "
    "how into its just like more most near next not now once onto other our over own same second she some still such "
    "than that the their them then there these they this those through toward towards under until upon very was were "
    "what when where which while who whose will with within without you your".split()
)
STEPS = re.compile(r"\b(?:then|after that|finally|first(?:ly)?|second(?:ly)?)\b(?!-)", re.IGNORECASE)

PLACEHOLDER = "{prompt}"  # of the prompt in a template
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
    """The prompts of a video before and after its switch.

    If they are equal, its prompt never changes; it is only recached where another video of its batch switches.
    """

    first: str
    second: str


def read_pairs(path: Path, second: Path | None = None, *, limit: int = MAX_PROMPTS_BYTES) -> tuple[PromptPair, ...]:
    """Read prompt pairs from a .jsonl file, or from text with one prompt per line and, in `second`, each one's second.

    A line of .jsonl is `{"prompts": [first, second]}`; of more than two, each is paired with the next. One prompt
    alone makes a video without a switch, and so does text without `second`. Raises DataError, also for a file of more
    than `limit` bytes.
    """
    if second is None and path.suffix.lower() == JSONL:
        entries = _read_entries(path, limit)
        return tuple(pair for where, entry in entries for pair in _make_pairs(entry.get("prompts"), where))
    if second is not None and JSONL in (path.suffix.lower(), second.suffix.lower()):
        raise DataError(f"{path} and {second} cannot be paired: a {JSONL} file holds whole pairs, so give it alone")
    prompts = _read_prompts(path, limit)
    following = _read_prompts(second, limit) if second else prompts
    if len(prompts) != len(following):
        missing = abs(len(prompts) - len(following))
        counts = f"{path} has {len(prompts)} lines and {second} {len(following)}"
        raise DataError(f"{counts}; a pair needs the same line in both, so add or remove {missing}")
    return tuple(map(PromptPair, prompts, following))


def parse_pairs(text: str) -> tuple[PromptPair, ...]:
    """Parse typed pairs: one `first -> second` or one prompt per line; lines that begin with `#` are comments."""
    lines = [line.strip() for line in NEWLINE.split(text.removeprefix("\ufeff"))]
    pairs = tuple(
        pair
        for number, line in enumerate(lines, start=1)
        if line and not line.startswith("#")
        for pair in _make_pairs(ARROW.split(line), f"line {number}")
    )
    if not pairs:
        raise DataError("the text has no prompts; write for example: a boat in the rain -> the boat in the rain sinks")
    return pairs


@lru_cache(maxsize=2)  # two epochs meet in a batch
def shuffle(count: int, seed: int, epoch: int) -> tuple[int, ...]:
    """Return the numbers 0 to `count` - 1 in an order that follows from seed and epoch alone, on every machine."""
    return tuple(sorted(range(count), key=lambda index: hashlib.sha256(f"{seed} {epoch} {index}".encode()).digest()))


def make_requests(prompts: Sequence[str], template: str = TEMPLATE) -> Iterator[dict]:
    """Make a request for the continuation of each prompt, as chat messages. Ids count from 1."""
    if PLACEHOLDER not in template:
        raise DataError(f"the template has no {PLACEHOLDER}; write {PLACEHOLDER} where the prompt of the video belongs")
    numbered = [(number, _check_prompt(prompt, f"request {number}")) for number, prompt in enumerate(prompts, start=1)]
    return (
        {"id": number, "prompt": prompt, "messages": [{"role": "user", "content": text}]}
        for number, prompt in numbered
        for text in [template.replace(PLACEHOLDER, prompt)]
    )


def write_requests(prompts: Sequence[str], path: Path, template: str = TEMPLATE) -> None:
    """Write the requests as JSONL."""
    _write_jsonl(path, make_requests(prompts, template))


def read_answers(requests_path: Path, answers_path: Path) -> tuple[list[PromptPair], list[str]]:
    """Pair prompts with their good answers, in the order of the requests; also return a sentence per refused answer."""
    prompts: dict[str, str] = {}
    for where, entry in _read_entries(requests_path):
        key = str(entry.get("id"))
        if "id" not in entry or key in prompts:
            raise DataError(f"{where} needs an id that no other line has; write the requests again")
        prompts[key] = _check_prompt(entry.get("prompt"), where)

    answers: dict[str, str] = {}
    refusals = []
    for where, entry in _read_entries(answers_path):
        key = str(entry.get("id", "without an id"))
        if key not in prompts:
            refusals.append(f"answer {shorten(key)} ({where}) matches no request in {requests_path}")
        elif key in answers:
            refusals.append(f"answer {shorten(key)} ({where}) is a duplicate; only the first with this id counts")
        else:
            answers[key] = _find_text(entry)

    pairs = []
    for key, prompt in prompts.items():
        answer = answers.get(key, "")
        if problem := next(filter(None, (check(prompt, answer) for check in CHECKS)), None):
            refusals.append(f"answer {shorten(key)} {problem}")
        else:
            pairs.append(PromptPair(prompt, answer))
    return pairs, refusals


def write_pairs(pairs: Iterable[PromptPair], path: Path) -> None:
    """Write pairs as JSONL, for `read_pairs`."""
    _write_jsonl(path, ({"prompts": [pair.first, pair.second]} for pair in pairs))


def check_num_words(prompt: str, answer: str) -> str | None:
    """Check that an answer is about as long as its prompt; return what is wrong."""
    if not answer:
        return "is missing"
    asked, words = len(prompt.split()), len(answer.split())
    low, high = math.ceil(MIN_LENGTH_RATIO * asked), min(MAX_LENGTH_RATIO * asked, MAX_WORDS)
    return None if low <= words <= high else f"has {words} words; its prompt of {asked} words needs {low} to {high}"


def check_subject(prompt: str, answer: str) -> str | None:
    """Check that an answer keeps the subject its prompt begins with; return what is wrong."""
    opening = _find_content_words(prompt)[:OPENING_WORDS]
    needed = max(1, math.ceil(MIN_SHARED * len(opening)))
    shared = len(set(opening) & set(_find_content_words(answer)))
    if shared >= needed:
        return None
    return f"leaves the subject: it shares {shared} of {', '.join(opening) or 'no words'}, and {needed} are needed"


def check_action(prompt: str, answer: str) -> str | None:
    """Check that an answer adds exactly one new action; return what is wrong."""
    if len(lines := answer.splitlines()) > 1:
        return f"has {len(lines)} lines; a prompt has one"
    if not set(_find_content_words(answer)) - set(_find_content_words(prompt)):
        return "adds no word to its prompt, so nothing new happens"
    steps = STEPS.findall(answer)
    return f"lists several actions ({' ... '.join(steps)}); only one was requested" if len(steps) > 1 else None


CHECKS = (check_num_words, check_subject, check_action)


def _find_content_words(text: str) -> list[str]:
    """Find the words of three or more letters that are not stop words, each once."""
    words = re.findall(r"[^\W\d_]{3,}", text.lower())
    return list(dict.fromkeys(word for word in words if word not in STOP_WORDS))


def _find_text(entry: dict) -> str:
    """Find the text of an answer; empty if there is none."""
    match entry:
        case {"answer": str(text)} | {"content": str(text)} | {"choices": [{"message": {"content": str(text)}}, *_]}:
            return text.strip()
    return ""


def _make_pairs(prompts: object, where: str) -> list[PromptPair]:
    """Pair each prompt with the next; pair a single prompt with itself."""
    if not isinstance(prompts, list) or not prompts:
        found = reprlib.repr(prompts)
        raise DataError(f'{where} has {found} instead of a list of prompts; write {{"prompts": ["first", "second"]}}')
    checked = [_check_prompt(prompt, where) for prompt in prompts]
    return list(itertools.starmap(PromptPair, itertools.pairwise(checked))) or [PromptPair(*checked * 2)]


def _check_prompt(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where} has {reprlib.repr(value)} instead of a prompt; write text in quotes")
    if not value.strip():
        raise DataError(f"{where} has an empty prompt; write a prompt there or remove the line")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair, which no tokenizer accepts
        raise DataError(
            f"{where} has {reprlib.repr(value)}, which is not valid text; write the prompt again"
        ) from error
    return value.strip()


def _read_prompts(path: Path, limit: int) -> list[str]:
    lines = enumerate(_read_lines(path, limit), start=1)
    return [_check_prompt(line, f"{path} line {number}") for number, line in lines]


def _read_entries(path: Path, limit: int = MAX_PROMPTS_BYTES) -> Iterator[tuple[str, dict]]:
    """Read the objects of a JSONL file, each with its place for messages."""
    for number, line in enumerate(_read_lines(path, limit), start=1):
        where = f"{path} line {number}"
        if not line:
            continue
        try:
            entry = parse_json(line)
        except ValueError as error:
            raise DataError(f"{where} is not JSON ({error}); write one object per line") from error
        if not isinstance(entry, dict):
            raise DataError(f"{where} has {reprlib.repr(entry)} instead of an object; write one in braces")
        yield where, entry


def _read_lines(path: Path, limit: int) -> list[str]:
    """Read the lines of a file without the blank ones at its end."""
    try:
        text = read_text(path, limit)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}); give a text file in UTF-8") from error
    if not text.strip():
        raise DataError(f"{path} is empty; it needs at least one line")
    return [line.strip() for line in NEWLINE.split(text.rstrip())]


def _write_jsonl(path: Path, entries: Iterable[dict]) -> None:
    """Write JSONL atomically."""
    text = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
    try:
        write_text(path, text)
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{path} cannot be written ({reason}); choose a folder you may write to") from error
