"""The miniature's text encoder: hashed words, and warnings for words it does not know."""

import logging

from torch import Tensor

from ..model.text_encoder import HashedWords, split_words
from .grammar import VOCABULARY, find_problems

log = logging.getLogger(__name__)


class MiniatureText(HashedWords):
    """Encodes prompts of the miniature's grammar in the shape of umT5's output [1, 512, 4096].

    It leaves out a word outside the grammar, whose vector would be noise to the network, and names it in a warning.
    """

    def __call__(self, prompt: str) -> Tensor:
        for problem in find_problems(prompt) if prompt.strip() else ():  # an empty negative prompt is fine
            log.warning("%s", problem)
        return super().__call__(" ".join(word for word in split_words(prompt) if word in VOCABULARY))
