"""Prompts from ComfyUI: a CONDITIONING as a prompt, and texts encoded by a CLIP."""

import logging
from dataclasses import dataclass, replace

import comfy.model_management
import comfy.utils
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...longlive.errors import ConditioningError
from ...longlive.session.prompt import Prompt, encode_prompt_mix
from ...longlive.tuning.parts import EmbeddedPair
from ...longlive.tuning.prompt_pairs import PromptPair

log = logging.getLogger(__name__)

HARMLESS_SETTINGS = {"pooled_output", "unprojected"}  # of a CONDITIONING; ignored without a warning


@dataclass(frozen=True)
class Pairs:
    """Prompt pairs, as texts and as embeddings, and the negative prompt of the teacher."""

    texts: tuple[PromptPair, ...]
    embedded: tuple[EmbeddedPair, ...]
    negative: str
    unprompted: Tensor  # embedding of the negative prompt [L, D]

    def _comfy_cache_tensors(self) -> list[Tensor]:
        """ComfyUI's hook to weigh what its cache holds."""
        return [self.unprompted, *(half for pair in self.embedded for half in (pair.first, pair.second))]


def to_prompt(conditioning: list, patcher: ModelPatcher | None = None) -> Prompt:
    """Take the one prompt of a CONDITIONING.

    Raises ConditioningError for several prompts, or for an embedding that `patcher` cannot read.
    """
    if len(conditioning) != 1:
        raise ConditioningError(
            f"the CONDITIONING holds {len(conditioning)} prompts, a segment has one; "
            f"connect one CLIP Text Encode and switch prompts with LongLive Switch Prompt"
        )
    embedding, settings = conditioning[0]
    unused = sorted(name for name, value in settings.items() if value is not None and name not in HARMLESS_SETTINGS)
    if unused:
        log.warning("LongLive ignores what a session cannot use of the CONDITIONING: %s", ", ".join(unused))
    prompt = Prompt.of(embedding)
    if patcher is not None:
        check_embedding_width(prompt.embedding, patcher)
    return prompt


def check_embedding_width(embedding: Tensor, patcher: ModelPatcher) -> None:
    """Refuse an embedding that a MODEL cannot read. Raises ConditioningError."""
    width, expected = embedding.shape[-1], patcher.model.diffusion_model.text_dim
    if width != expected:
        raise ConditioningError(
            f"the CONDITIONING is {width} wide, this model reads {expected}; "
            f"encode the prompt with the umT5-xxl text encoder (CLIP loader, type wan)"
        )


def encode_prompt(clip, text: str, patcher: ModelPatcher | None = None) -> Prompt:
    """Encode a text: one prompt, or a mix of several with weights. Raises ConditioningError as `to_prompt` does."""

    def encode(part: str) -> Prompt:
        conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(part))
        return replace(to_prompt(conditioning, patcher), text=part)

    return encode_prompt_mix(text, encode)


def encode_pairs(clip, texts: tuple[PromptPair, ...], negative: str) -> Pairs:
    """Encode each prompt once, while ComfyUI shows the progress and may interrupt."""
    prompts = list(dict.fromkeys([negative, *(half for pair in texts for half in (pair.first, pair.second))]))
    bar, embeddings = comfy.utils.ProgressBar(len(prompts)), {}
    for prompt in prompts:
        comfy.model_management.throw_exception_if_processing_interrupted()
        embeddings[prompt] = encode_prompt(clip, prompt).embedding[0]
        bar.update(1)
    embedded = tuple(EmbeddedPair(embeddings[pair.first], embeddings[pair.second]) for pair in texts)
    return Pairs(texts, embedded, negative, embeddings[negative])
