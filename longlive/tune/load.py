"""The parts of a tuning: networks, VAE and embedded prompts, from files or from the miniature."""

import contextlib
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..config import PIXELS_PER_CELL
from ..miniature.files import DIT, TEACHER, load_miniature, present
from ..miniature.films import numbered, random_scene
from ..miniature.world import SIZE
from ..model.checkpoint import load_model
from ..model.vae import LATENT_CHANNELS
from ..model.vae_file import load_vae
from ..model.wan import WanModel
from ..session import Prompt
from ..store import write_atomically
from ..text import UMT5, HashedWords, TextEncoder
from .config import Precision, TuneConfig
from .data import PromptPair, read_pairs
from .stream import Codec
from .tuning import EmbeddedPair, Parts

if TYPE_CHECKING:
    from accelerate import Accelerator

OWN_PAIRS = 512  # of the miniature's grammar


def load_parts(config: TuneConfig, cache: Path, accelerator: "Accelerator") -> Parts:
    """Load what a configuration names; prompt embeddings are kept in `cache`. Raises what the loaders raise."""
    return _miniature(config) if config.model.miniature else _files(config, cache, accelerator)


def _miniature(config: TuneConfig) -> Parts:
    present(DIT, TEACHER)
    miniature = load_miniature()
    student, critic, teacher = (_network(path, torch.float32) for path in (DIT, TEACHER, TEACHER))
    pairs = read_pairs(Path(config.data.prompts)) if config.data.prompts else own_pairs(OWN_PAIRS)
    return Parts(
        student=student,
        critic=critic,
        teacher=teacher,
        codec=Codec.of_vae(miniature.vae),
        pairs=EmbeddedPairs(pairs, miniature.text),
        unprompted=embedding_of(HashedWords(), config.data.negative),
        shape_CHW=shape_of(SIZE, SIZE),
    )


def _files(config: TuneConfig, cache: Path, accelerator: "Accelerator") -> Parts:
    model, data = config.model, config.data
    pipeline, device = Path(model.pipeline), accelerator.device
    dtype = torch.bfloat16 if config.learn.precision is Precision.HALF else torch.float32
    pairs = read_pairs(Path(data.prompts), Path(data.switched) if data.switched else None)
    name = f"{model.pipeline} {dtype}"
    encoder = Remembered(cache, name, lambda: UMT5.of_pipeline(pipeline, device=device, dtype=dtype))
    prompts = [*dict.fromkeys([data.negative, *(half for pair in pairs for half in (pair.first, pair.second))])]
    for prompt in prompts[accelerator.process_index :: accelerator.num_processes]:
        encoder(prompt)
    accelerator.wait_for_everyone()
    encoder.close()  # 11 GB that nothing needs any more
    student, critic, teacher = (
        _network(Path(path), dtype, lora)
        for path, lora in ((model.weights, model.lora), (model.critic or model.teacher, ""), (model.teacher, ""))
    )
    return Parts(
        student=student,
        critic=critic,
        teacher=teacher,
        codec=Codec.of_vae(load_vae(pipeline / "vae", device=device, dtype=dtype)),
        pairs=EmbeddedPairs(pairs, encoder),
        unprompted=embedding_of(encoder, data.negative),
        shape_CHW=shape_of(data.height, data.width),
    )


def _network(path: Path, dtype: torch.dtype, lora: str = "") -> WanModel:
    tree, _ = load_model(path, lora=Path(lora) if lora else None, dtype=dtype)
    return tree


def shape_of(height: int, width: int) -> tuple[int, int, int]:
    return LATENT_CHANNELS, height // PIXELS_PER_CELL, width // PIXELS_PER_CELL


def own_pairs(count: int) -> tuple[PromptPair, ...]:
    """Pairs of the miniature's grammar."""
    pairs = []
    for number in range(count):
        draw = numbered("pair", number)
        pairs.append(PromptPair(str(random_scene(draw)), str(random_scene(draw, anywhere=False))))
    return tuple(pairs)


class EmbeddedPairs(Sequence[EmbeddedPair]):
    """Pairs that are embedded when they are asked for: there may be more than fit into memory."""

    def __init__(self, pairs: Sequence[PromptPair], encoder: TextEncoder) -> None:
        self.pairs, self.encoder = pairs, encoder

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index):
        pair = self.pairs[index]
        return EmbeddedPair(embedding_of(self.encoder, pair.first), embedding_of(self.encoder, pair.second))


def embedding_of(encoder: TextEncoder, prompt: str) -> Tensor:
    """The rows [L, D] of a prompt that are not zero."""
    return Prompt.of(encoder(prompt)).embedding[0]


class Remembered:
    """A text encoder that is loaded when the first prompt is asked that no earlier run has embedded."""

    def __init__(self, folder: Path, name: str, load: Callable[[], TextEncoder]) -> None:
        self.folder, self.name, self.load = folder, name, load
        self._encoder: TextEncoder | None = None

    def __call__(self, prompt: str) -> Tensor:
        key = hashlib.sha256(f"{self.name}\n{prompt}".encode()).hexdigest()
        path = self.folder / f"{key}.safetensors"
        if path.exists():
            with contextlib.suppress(SafetensorError, KeyError):  # a damaged one is made anew
                return load_file(path)["embedding"]
        if self._encoder is None:
            self._encoder = self.load()
        embedding = Prompt.of(self._encoder(prompt)).embedding
        write_atomically(path, {"embedding": embedding})
        return embedding

    def close(self) -> None:
        """Forget the encoder."""
        self._encoder = None
