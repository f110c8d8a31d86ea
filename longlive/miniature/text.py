"""The miniature's text encoder: hashed words, and a warning for what they cannot say."""

import logging

from torch import Tensor

from ..text import HashedWords, words_of
from .grammar import VOCABULARY, complaints

log = logging.getLogger(__name__)


class MiniatureText(HashedWords):
    """Prompts of the miniature's grammar in the shape of umT5's output [1, 512, 4096].

    A word outside the grammar is left out, for its vector would be mere noise to the network, and named in a warning.
    """

    def __call__(self, prompt: str) -> Tensor:
        for complaint in complaints(prompt) if prompt.strip() else ():  # none is what a teacher is guided away from
            log.warning("%s", complaint)
        return super().__call__(" ".join(word for word in words_of(prompt) if word in VOCABULARY))
