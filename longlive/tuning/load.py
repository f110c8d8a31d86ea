"""Loads the parts of a tuning from files: networks, VAE and embedded prompts."""

import contextlib
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..model.text_encoder import UMT5, TextEncoder
from ..model.vae import LATENT_CHANNELS
from ..model.wan import WanModel
from ..session.session import Prompt
from ..units import PIXELS_PER_CELL
from ..weights.load import load_model
from ..weights.load_vae import load_vae
from ..weights.tensor_file import write_tensor_file
from .config import Precision, TuneConfig
from .parts import EmbeddedPair, TuningParts
from .prompt_pairs import PromptPair, read_pairs
from .streaming import Codec

if TYPE_CHECKING:
    from accelerate import Accelerator


def load_parts(config: TuneConfig, embeddings: Path, accelerator: "Accelerator") -> TuningParts:
    """Load the files that a configuration names. Prompt embeddings are kept in the folder `embeddings`.

    Raises the errors of the loaders.
    """
    model, data = config.model, config.data
    pipeline, device = Path(model.pipeline), accelerator.device
    dtype = torch.bfloat16 if config.learn.precision is Precision.HALF else torch.float32
    pairs = read_pairs(Path(data.prompts), Path(data.switched) if data.switched else None)
    name = f"{model.pipeline} {dtype}"
    encoder = CachedEncoder(embeddings, name, lambda: UMT5.of_pipeline(pipeline, device=device, dtype=dtype))
    prompts = [*dict.fromkeys([data.negative, *(half for pair in pairs for half in (pair.first, pair.second))])]
    for prompt in prompts[accelerator.process_index :: accelerator.num_processes]:
        encoder(prompt)
    accelerator.wait_for_everyone()
    encoder.close()  # frees 11 GB
    student, critic, teacher = (
        load_network(Path(path), dtype, lora)
        for path, lora in ((model.weights, model.lora), (model.critic or model.teacher, ""), (model.teacher, ""))
    )
    return TuningParts(
        student=student,
        critic=critic,
        teacher=teacher,
        codec=Codec.of_vae(load_vae(pipeline / "vae", device=device, dtype=dtype)),
        pairs=EmbeddedPairs(pairs, encoder),
        unprompted=embed_unpadded(encoder, data.negative),
        shape_CHW=compute_frame_shape(data.height, data.width),
    )


def load_network(path: Path, dtype: torch.dtype, lora: str = "") -> WanModel:
    tree, _ = load_model(path, lora=Path(lora) if lora else None, dtype=dtype)
    return tree


def compute_frame_shape(height: int, width: int) -> tuple[int, int, int]:
    """Compute the shape (C, H, W) of a latent frame from pixels."""
    return LATENT_CHANNELS, height // PIXELS_PER_CELL, width // PIXELS_PER_CELL


class EmbeddedPairs(Sequence[EmbeddedPair]):
    """Prompt pairs that are embedded on access, since all embeddings may not fit into memory."""

    def __init__(self, pairs: Sequence[PromptPair], encoder: TextEncoder) -> None:
        self.pairs, self.encoder = pairs, encoder

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index):
        pair = self.pairs[index]
        return EmbeddedPair(embed_unpadded(self.encoder, pair.first), embed_unpadded(self.encoder, pair.second))


def embed_unpadded(encoder: TextEncoder, prompt: str) -> Tensor:
    """Embed a prompt; return its rows [L, D] without trailing zero rows."""
    return Prompt.of(encoder(prompt)).embedding[0]


class CachedEncoder:
    """A text encoder that keeps embeddings as files, and is loaded only for a prompt that has no file."""

    def __init__(self, folder: Path, name: str, load: Callable[[], TextEncoder]) -> None:
        self.folder, self.name, self.load = folder, name, load
        self._encoder: TextEncoder | None = None

    def __call__(self, prompt: str) -> Tensor:
        key = hashlib.sha256(f"{self.name}\n{prompt}".encode()).hexdigest()
        path = self.folder / f"{key}.safetensors"
        if path.exists():
            with contextlib.suppress(SafetensorError, KeyError):  # a damaged file is replaced
                return load_file(path)["embedding"]
        if self._encoder is None:
            self._encoder = self.load()
        embedding = Prompt.of(self._encoder(prompt)).embedding
        write_tensor_file(path, {"embedding": embedding})
        return embedding

    def close(self) -> None:
        """Free the encoder."""
        self._encoder = None
