"""From a prompt to its embedding: umT5 outside ComfyUI, or hashed words without a text encoder.

Inside ComfyUI the host's own CLIP does this. Embeddings are [1, rows, width], with zeros past the prompt's length: the
model attends those rows too (Wan2.1).
"""

import contextlib
import hashlib
import html
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from ..errors import WeightsError
from .pretrained import import_class, load_pretrained
from .wan import TEXT_LEN

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, UMT5EncoderModel

TEXT_DIM = 4096  # of umT5 embeddings
ENCODER, TOKENIZER = "text_encoder", "tokenizer"  # folders of a pipeline


class TextEncoder(Protocol):
    """Anything that turns a prompt into its embedding [1, rows, width]."""

    def __call__(self, prompt: str) -> Tensor: ...


class HashedWords:
    """A text encoder without a network: each word becomes one row, a normal vector drawn from the word's hash.

    For models trained on it and for tests. It knows no meanings, but the same word always gives the same row.
    """

    SCALE = 0.25

    def __init__(self, rows: int = TEXT_LEN, width: int = TEXT_DIM) -> None:
        self.rows, self.width = rows, width

    def __call__(self, prompt: str) -> Tensor:
        words = split_words(prompt)[: self.rows]
        embedding = torch.zeros(1, self.rows, self.width)
        for row, word in enumerate(words):
            embedding[0, row] = self._vector(word)
        return embedding

    def _vector(self, word: str) -> Tensor:
        key = int.from_bytes(hashlib.sha256(word.encode()).digest()[:16], "little")
        normal = np.random.Generator(np.random.Philox(key=key)).standard_normal(self.width, dtype=np.float32)
        return self.SCALE * torch.from_numpy(normal)


def split_words(prompt: str) -> list[str]:
    """Split a prompt into words, lower-case and without punctuation."""
    return re.findall(r"\w+", prompt.lower())


class UMT5:
    """umT5-xxl from a diffusers-format Wan2.1 folder (`text_encoder/`, `tokenizer/`), run by `transformers`."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", encoder: "UMT5EncoderModel") -> None:
        self.tokenizer, self.encoder = tokenizer, encoder

    @classmethod
    def of_pipeline(cls, folder: str | Path, *, device: torch.device, dtype: torch.dtype) -> "UMT5":
        """Load umT5. Raises WeightsError for a folder without it, or if `transformers` is not installed."""
        encoder_class = import_class(
            "UMT5EncoderModel", what="the text encoder", packages="diffusers transformers sentencepiece ftfy"
        )
        folder = Path(folder)
        for part in (ENCODER, TOKENIZER):
            if not os.path.isdir(folder / part):  # unlike Path.is_dir, accepts names that no disk does
                raise WeightsError(
                    f"{folder} has no {part}/ folder; give a diffusers-format Wan2.1 folder, "
                    f"for example a download of Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
                )
        tokenizer, encoder = load_pretrained(
            encoder_class, folder / ENCODER, folder / TOKENIZER, what=f"the text encoder in {folder}", dtype=dtype
        )
        return cls(tokenizer, encoder.to(device))

    @torch.no_grad()
    def __call__(self, prompt: str) -> Tensor:
        tokens = self.tokenizer(
            clean_prompt(prompt),
            max_length=TEXT_LEN,
            padding="max_length",
            truncation=True,
            return_tensors="pt",
        ).to(self.encoder.device)
        embedding = self.encoder(tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
        return (embedding * tokens.attention_mask[..., None]).cpu()


def clean_prompt(prompt: str) -> str:
    """Clean a prompt as Wan does: mend wrongly decoded characters, resolve HTML entities, join runs of spaces."""
    with contextlib.suppress(ImportError):  # optional: it only mends wrongly decoded text
        import ftfy

        prompt = ftfy.fix_text(prompt)
    return re.sub(r"\s+", " ", html.unescape(html.unescape(prompt))).strip()
