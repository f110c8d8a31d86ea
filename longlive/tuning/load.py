"""Loads the parts of a tuning from files: networks, VAE and embedded prompts."""

import contextlib
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..digest import hash_facts
from ..errors import TuningError
from ..model.text_encoder import UMT5, TextEncoder
from ..model.vae import LATENT_CHANNELS
from ..model.wan import WanModel
from ..session.prompt import Prompt
from ..units import PIXELS_PER_CELL
from ..weights.file_digest import digest_file
from ..weights.load import load_model
from ..weights.load_vae import load_vae
from ..weights.tensor_file import write_tensor_file
from .accelerator import fail_together
from .config import Precision, TuneConfig
from .parts import EmbeddedPair, TuningParts
from .prompt_pairs import PromptPair, read_pairs
from .streaming import Codec

if TYPE_CHECKING:
    from accelerate import Accelerator

TEXT_PARTS = ("text_encoder", "tokenizer")  # folders of a pipeline
PIPELINE_PARTS = (*TEXT_PARTS, "vae")


def load_parts(config: TuneConfig, embeddings: Path, accelerator: "Accelerator", cache_dir: Path | None) -> TuningParts:
    """Load the files that a configuration names. Prompt embeddings are kept in the folder `embeddings`.

    Digests of files are cached in `cache_dir`. Raises the errors of the loaders.
    """
    model, data = config.model, config.data
    pipeline, device = Path(model.pipeline), accelerator.device
    dtype = torch.bfloat16 if config.learn.precision is Precision.HALF else torch.float32
    pairs = read_pairs(Path(data.prompts), Path(data.switched) if data.switched else None)
    name = f"{digest_text_encoder(pipeline, cache_dir)} {dtype}"
    encoder = CachedEncoder(embeddings, name, lambda: UMT5.of_pipeline(pipeline, device=device, dtype=dtype))
    prompts = [*dict.fromkeys([data.negative, *(half for pair in pairs for half in (pair.first, pair.second))])]
    with fail_together(accelerator):
        for prompt in prompts[accelerator.process_index :: accelerator.num_processes]:
            encoder(prompt)
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


def identify_files(config: TuneConfig, cache_dir: Path | None) -> TuneConfig:
    """Return the configuration with the digests of its files in place of their paths.

    A tuning that is resumed then has the same files, wherever they are now. Raises WeightsError for a file that cannot
    be read.
    """
    model, data = config.model, config.data
    files = {name: _digest_named(getattr(model, name), cache_dir) for name in ("weights", "lora", "teacher", "critic")}
    pipeline = _digest_parts(Path(model.pipeline), PIPELINE_PARTS, cache_dir) if model.pipeline else ""
    texts = {name: _digest_named(getattr(data, name), cache_dir) for name in ("prompts", "switched")}
    return replace(config, model=replace(model, **files, pipeline=pipeline), data=replace(data, **texts))


def digest_text_encoder(pipeline: Path, cache_dir: Path | None) -> str:
    """Hash the files that an embedding depends on."""
    return _digest_parts(pipeline, TEXT_PARTS, cache_dir)


def _digest_named(path: str, cache_dir: Path | None) -> str:
    return f"sha256 {digest_file(path, cache_dir=cache_dir)}" if path else ""


def _digest_parts(folder: Path, parts: Sequence[str], cache_dir: Path | None) -> str:
    """Hash all files of some folders in a folder, by their names in it."""
    files = sorted(path for part in parts for path in (folder / part).rglob("*") if path.is_file())
    digests = [[path.relative_to(folder).as_posix(), digest_file(path, cache_dir=cache_dir)] for path in files]
    return f"sha256 {hash_facts(digests)}"


def load_network(path: Path, dtype: torch.dtype, lora: str = "") -> WanModel:
    """Load a network to learn or to judge. Raises TuningError for one whose linears have 8 bits."""
    tree, report = load_model(path, lora=Path(lora) if lora else None, dtype=dtype)
    if report.forms:
        raise TuningError(f"{path.name} has linears in 8 bits, and tuning needs whole weights; give a file of bf16")
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
            with contextlib.suppress(OSError, SafetensorError, KeyError):  # a damaged file is replaced
                return load_file(path)["embedding"]
        if self._encoder is None:
            self._encoder = self.load()
        embedding = Prompt.of(self._encoder(prompt)).embedding
        try:
            write_tensor_file(path, {"embedding": embedding})
        except (OSError, SafetensorError) as error:
            raise TuningError(
                f"the embedding of a prompt cannot be written to {path}: {error}; free some space or choose another "
                f"folder"
            ) from error
        return embedding

    def close(self) -> None:
        """Free the encoder."""
        self._encoder = None
