"""Fixtures that several unit tests share: a tiny random Wan2.1 folder in diffusers format, and a tiny miniature."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from longlive.miniature.files import Miniature
from longlive.miniature.text import MiniatureText
from longlive.model.causal import CausalWan
from longlive.model.vae import WanVAE
from longlive.model.wan import Geometry, WanModel

RECORDED_VAE = Path(__file__).parents[1] / "reference" / "vae.safetensors"


@pytest.fixture(scope="session", autouse=True)
def _text_without_pictures():
    """Hide torchvision: umT5 does not need it, and one that was built for another torch fails on import."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setitem(sys.modules, "torchvision", None)
        yield


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory) -> Path:
    """A random umT5 of two layers, a tokenizer of a dozen words, and the recorded VAE of width 2."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

    folder = tmp_path_factory.mktemp("pipeline")
    words = ["<pad>", "</s>", "<unk>", "a", "red", "fox", "runs", "&", "in", "the", "snow"]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    fast.save_pretrained(folder / "tokenizer")
    torch.manual_seed(0)
    config = UMT5Config(
        vocab_size=len(words), d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4, pad_token_id=0, eos_token_id=1
    )
    UMT5EncoderModel(config).save_pretrained(folder / "text_encoder")
    (folder / "vae").mkdir()
    (folder / "vae" / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKLWan"}))
    weights = {name.removeprefix("sd."): x for name, x in load_file(RECORDED_VAE).items() if name.startswith("sd.")}
    save_file(weights, folder / "vae" / "diffusion_pytorch_model.safetensors")
    return folder


@pytest.fixture(scope="session")
def miniature() -> Miniature:
    """A random network and a random VAE, as small as possible."""
    geometry = Geometry(dim=24, ffn_dim=32, num_heads=2, num_layers=2, freq_dim=8, text_dim=4096)
    torch.manual_seed(0)
    tree, vae = WanModel(geometry), WanVAE(2)
    for module in (tree, vae):
        for weight in module.parameters():
            weight.data = 0.1 * torch.randn(weight.shape)
        module.requires_grad_(False)
    return Miniature(CausalWan.of_tree(tree), vae, MiniatureText())
