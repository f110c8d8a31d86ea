"""CLIP scores from a CLIP model in a local folder (Radford et al. 2021), through `transformers`.

Dimension key: F pictures, H rows, W columns, D width of the space of embeddings.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as nnf
from torch import Tensor

from ..errors import WeightsError
from ..model.pretrained import import_class, load_pretrained

if TYPE_CHECKING:
    from transformers import CLIPModel, PreTrainedTokenizerBase

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of CLIP's training pictures
MAX_TOKENS = 77  # of a prompt; CLIP ignores the rest


class ClipScorer:
    """Embeds pictures and prompts in one space; the cosine between them is the CLIP score."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", model: "CLIPModel") -> None:
        self.tokenizer, self.model = tokenizer, model

    @classmethod
    def of_folder(cls, folder: Path) -> "ClipScorer":
        """Load a CLIP model. Raises WeightsError if the folder has none, or `transformers` is not installed."""
        model_class = import_class("CLIPModel", what="CLIP", packages="transformers")
        if not os.path.isfile(folder / "config.json"):  # unlike Path.is_file, accepts names that no disk does
            raise WeightsError(
                f"{folder} has no config.json; give the folder of a CLIP model, "
                f"for example a download of openai/clip-vit-base-patch32"
            )
        return cls(*load_pretrained(model_class, folder, folder, what=f"the CLIP model in {folder}"))

    def embed_pictures(self, bytes_FHW3: Tensor) -> Tensor:
        """Embed the middle square of each picture, as CLIP was trained; vectors [F, D] of length 1."""
        size = self.model.config.to_dict()["vision_config"]["image_size"]
        x_FCHW = bytes_FHW3.permute(0, 3, 1, 2).float() / 255
        scale = size / min(x_FCHW.shape[-2:])
        height, width = (round(n * scale) for n in x_FCHW.shape[-2:])
        x_FCHW = nnf.interpolate(x_FCHW, (height, width), mode="bicubic", antialias=True).clamp_(0, 1)
        top, left = (height - size) // 2, (width - size) // 2
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
        square_FCHW = (x_FCHW[:, :, top : top + size, left : left + size] - mean) / std
        pooled_FD = self.model.vision_model(square_FCHW).pooler_output
        return nnf.normalize(self.model.visual_projection(pooled_FD), dim=-1)

    def embed_prompt(self, text: str) -> Tensor:
        """Embed a prompt as a vector [D] of length 1."""
        tokens = self.tokenizer(text, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        pooled_BD = self.model.text_model(tokens.input_ids, attention_mask=tokens.attention_mask).pooler_output
        return nnf.normalize(self.model.text_projection(pooled_BD), dim=-1)[0]
