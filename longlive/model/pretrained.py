"""Networks and tokenizers in local folders, loaded by `transformers`, an optional package. Nothing is fetched."""

import importlib
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ..errors import WeightsError, list_names


def import_class(name: str, *, what: str, packages: str) -> Any:
    """Import a class of `transformers`, which `what` needs. Raises WeightsError if that does not load."""
    try:
        return getattr(importlib.import_module("transformers"), name)
    except (AttributeError, ImportError) as error:
        raise WeightsError(
            f"{what} needs transformers, which does not load ({error}); pip install {packages}"
        ) from error


def load_pretrained(model_class: Any, weights: Path, tokenizer: Path, *, what: str, **options: object) -> tuple:
    """Load the tokenizer and the frozen network of two folders. `what` names them in messages.

    Raises WeightsError if a folder holds anything else, or a tensor is missing.
    """
    from transformers import AutoTokenizer

    try:
        loaded_tokenizer = AutoTokenizer.from_pretrained(tokenizer, local_files_only=True)  # nosec B615 # nothing is fetched
        model, found = model_class.from_pretrained(  # nosec B615 # nothing is fetched
            weights, local_files_only=True, output_loading_info=True, **options
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise WeightsError(f"{what} cannot be loaded: {error}") from error
    if missing := sorted(found["missing_keys"]):
        raise WeightsError(f"{what} lacks {list_names(missing)}; download it again")
    return loaded_tokenizer, model.eval().requires_grad_(False)
