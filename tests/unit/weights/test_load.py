"""Files of weights: every layout gives the same model, everything else is refused with the cure."""

import argparse
import json
import logging
import os
import pickle
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from longlive.errors import WeightsError
from longlive.weights import load
from longlive.weights.describe import describe_file
from longlive.weights.identify import Kind, identify
from longlive.weights.load import load_model
from longlive.weights.weights_file import normalise_names, read_weights_file

REFERENCE = Path(__file__).parents[1].parent / "reference"
CAUSAL = REFERENCE / "weights_causal.safetensors"
TINY = {"num_heads": 2, "text_len": 8}


@pytest.fixture(scope="module")
def base():
    return load_file(CAUSAL)


@pytest.fixture
def save(tmp_path):
    """Write an object to a file by its suffix and return the path."""

    def write(name, content, **options):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, str):
            path.write_text(content)
        elif name.endswith(".safetensors"):
            save_file(content, path, **options)
        else:
            torch.save(content, path, **options)
        return path

    return write


def prefixed(weights, prefix):
    return {prefix + name: tensor for name, tensor in weights.items()}


def blank(*shapes, **named):
    """Tensors by name; a positional name gets a shape of no meaning."""
    return {name: torch.zeros(2, 2) for name in shapes} | {name: torch.zeros(shape) for name, shape in named.items()}


def assert_loads_as(weights, path, **options):
    model, report = load_model(path, **(TINY | options))
    state = model.state_dict()
    assert state.keys() == weights.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(state[name], tensor, rtol=0, atol=0, msg=name)
    return report


# layouts


def test_safetensors_state_their_own_heads_and_text_length(base):
    model, report = load_model(CAUSAL)
    assert (model.num_heads, model.text_len, model.blocks[0].self_attn.num_heads) == (2, 8, 2)
    assert (report.num_tensors, report.layout, report.dtype) == (69, "bare", torch.float32)
    assert report.num_parameters == sum(tensor.numel() for tensor in base.values())
    assert report.warnings == ()
    assert str(report) == "weights_causal.safetensors (bare, width 32): 69 tensors, 40,096 parameters in float32"


def test_a_loaded_model_is_frozen_and_owns_its_memory(base, save):
    path = save("model.safetensors", base)
    model, _ = load_model(path, **TINY)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    path.write_bytes(bytes(path.stat().st_size))  # would reach mapped tensors
    torch.testing.assert_close(model.head.head.weight, base["head.head.weight"])


@pytest.mark.parametrize("suffix", ["pt", "pth", "ckpt", "bin", "safetensors"])
def test_bare_weights_load_from_every_suffix(base, save, suffix):
    assert assert_loads_as(base, save(f"model.{suffix}", base)).layout == "bare"


def test_the_format_is_told_by_content_and_not_by_suffix(base, save):
    misnamed = save("model.safetensors", base).rename(save("x", b"").with_name("model.pt"))
    assert_loads_as(base, misnamed)


def test_the_format_of_before_torch_1_6_loads(base, save):
    assert_loads_as(base, save("old.pt", {"generator": base}, _use_new_zipfile_serialization=False))


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "model.",
        "module.",
        "diffusion_model.",
        "model.diffusion_model.",
        "module.model.",
        "model._fsdp_wrapped_module.",
        "_orig_mod.model.",
        "model._orig_mod._fsdp_wrapped_module.",
    ],
)
def test_every_prefix_is_stripped(base, save, prefix):
    path = save("model.pt", {"generator": prefixed(base, prefix)})
    assert assert_loads_as(base, path).layout == "generator"
    assert read_weights_file(path).prefix == prefix


def test_marks_of_wrappers_are_stripped_wherever_they_stand(base, save):
    def marked(name):
        name = name.replace("self_attn.", "_checkpoint_wrapped_module.self_attn._orig_mod.")
        return "model." + name.replace("blocks.0.", "blocks.0._fsdp_wrapped_module.")

    assert_loads_as(base, save("model.pt", {"model": {marked(name): tensor for name, tensor in base.items()}}))


@pytest.mark.parametrize("part", ["generator", "generator_ema", "model", "state_dict"])
def test_every_part_that_holds_a_model_is_found(base, save, part):
    assert assert_loads_as(base, save("model.pt", {part: base, "step": 7})).layout == part


def test_parts_may_be_nested(base, save):
    assert (
        assert_loads_as(base, save("model.pt", {"state_dict": {"generator": base, "critic": {}}})).layout == "generator"
    )


def test_the_generator_is_preferred_and_its_average_is_there_on_demand(base, save):
    averaged = {name: tensor + 1 for name, tensor in base.items()}
    path = save(
        "model.pt",
        {
            "generator_ema": prefixed(averaged, "model._fsdp_wrapped_module."),
            "critic": blank("x"),
            "generator": prefixed(base, "model."),
            "step": torch.tensor(700),
        },
    )
    assert assert_loads_as(base, path).layout == "generator"
    assert assert_loads_as(base, path, ema=False).layout == "generator"
    assert assert_loads_as(averaged, path, ema=True).layout == "generator_ema"


@pytest.mark.parametrize("num_shards", [1, 2])
def test_a_released_folder_loads_with_or_without_its_index(base, save, num_shards):
    names = list(base)
    config = save("wan/config.json", json.dumps({"_class_name": "WanModel", "num_heads": 2, "text_len": 8, "dim": 32}))
    save("wan/models_t5.pth", blank("not.read"))
    files = [f"diffusion_pytorch_model-{i + 1:05}-of-{num_shards:05}.safetensors" for i in range(num_shards)]
    weight_map = {name: files[i % num_shards] for i, name in enumerate(names)}
    for file in files:
        save(f"wan/{file}", {name: base[name] for name in names if weight_map[name] == file})
    assert_loads_as(base, config.parent, num_heads=None, text_len=None)

    save("wan/diffusion_pytorch_model.safetensors.index.json", json.dumps({"weight_map": weight_map}))
    report = assert_loads_as(base, config.parent, num_heads=None, text_len=None)
    assert "bidirectional base model" in report.warnings[0]

    (config.parent / files[-1]).unlink()
    with pytest.raises(WeightsError, match=rf"lacks {files[-1]}; download the folder again"):
        read_weights_file(config.parent)


def test_weights_move_to_the_wanted_dtype_and_by_default_to_that_of_most(base, save):
    assert load_model(CAUSAL, dtype=torch.bfloat16)[0].head.head.weight.dtype == torch.bfloat16
    halves = {name: tensor if "modulation" in name else tensor.bfloat16() for name, tensor in base.items()}
    model, report = load_model(save("mixed.pt", halves), **TINY)
    assert {parameter.dtype for parameter in model.parameters()} == {report.dtype} == {torch.bfloat16}


def test_fp8_is_for_storage_and_computes_in_bfloat16(base, save):
    stored = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in base.items()}
    model, _ = load_model(save("fp8.safetensors", stored), **TINY)
    assert model.head.head.weight.dtype == torch.bfloat16


def test_loading_warns_once_in_the_log(base, save, caplog):
    config = save("wan/config.json", json.dumps({"_class_name": "WanModel"}))
    save("wan/diffusion_pytorch_model.safetensors", base)
    with caplog.at_level(logging.WARNING):
        load_model(config.parent, **TINY)
    assert len(caplog.records) == 1


# what a file is


def wan(channels, dim=32, *more):
    return blank(
        "head.modulation",
        "blocks.0.self_attn.q.weight",
        *more,
        **{"patch_embedding.weight": (dim, channels, 1, 2, 2)},
    )


KINDS = [
    (Kind.WAN_T2V, wan(16)),
    (Kind.WAN_I2V, wan(36)),
    (Kind.WAN_I2V, wan(36, 32, "img_emb.proj.0.weight")),
    (Kind.WAN_I2V, wan(16, 32, "blocks.0.cross_attn.k_img.weight")),
    (Kind.WAN_5B, wan(48)),
    (Kind.WAN_VARIANT, wan(16, 32, "vace_patch_embedding.weight")),
    (Kind.WAN_VARIANT, wan(33)),
    (Kind.WAN_QUANTISED, wan(16, 32, "blocks.0.self_attn.q.scale_weight")),
    (Kind.WAN_QUANTISED, wan(16, 32, "scaled_fp8")),
    (Kind.WAN_DIFFUSERS, blank("condition_embedder.time_proj.weight", "blocks.0.attn1.to_q.weight")),
    (Kind.VAE, blank("encoder.downsamples.0.residual.0.gamma", "conv2.weight")),
    (Kind.VAE_22, blank("encoder.downsamples.0.downsamples.0.residual.0.gamma", **{"conv2.weight": (48, 48, 1, 1, 1)})),
    (Kind.VAE_DIFFUSERS, blank("quant_conv.weight", "decoder.mid_block.resnets.0.norm1.gamma")),
    (Kind.UMT5, blank("token_embedding.weight", "blocks.0.pos_embedding.embedding.weight")),
    (Kind.UMT5, blank("shared.weight", "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight")),
    (Kind.T5, blank("shared.weight", "encoder.block.0.layer.0.SelfAttention.q.weight")),
    (Kind.LORA, blank("blocks.0.self_attn.q.lora_A.weight", "blocks.0.self_attn.q.lora_B.weight")),
    (Kind.LORA, blank("lora_unet_blocks_0_cross_attn_q.lora_down.weight")),
    (Kind.LORA, blank("lora_unet__blocks_0_ffn_0.lora_down.weight")),
    (Kind.LORA_DIFFUSERS, blank("transformer.blocks.0.attn1.to_q.lora_A.weight")),
    (Kind.LORA_FLUX, blank("transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight")),
    (Kind.LORA_FLUX, blank("lora_unet_double_blocks_0_img_attn_proj.lora_down.weight")),
    (Kind.LORA_SD, blank("lora_unet_input_blocks_1_1_proj_in.lora_down.weight")),
    (Kind.LORA_SD, blank("lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight")),
    (Kind.LORA_OTHER, blank("layers.0.feed_forward.w1.lora_A.weight")),
    (Kind.SDXL, blank("model.diffusion_model.input_blocks.0.0.weight", "model.diffusion_model.label_emb.0.0.weight")),
    (Kind.SD, blank("model.diffusion_model.input_blocks.0.0.weight")),
    (Kind.SD3, blank("model.diffusion_model.joint_blocks.0.context_block.attn.qkv.weight")),
    (Kind.SD_VAE, blank("decoder.mid.block_1.norm1.weight")),
    (Kind.FLUX, blank("double_blocks.0.img_attn.qkv.weight", "img_in.weight")),
    (
        Kind.HUNYUAN,
        blank("txt_in.individual_token_refiner.blocks.0.norm1.weight", "double_blocks.0.img_attn.qkv.weight"),
    ),
    (Kind.LTX, blank("model.diffusion_model.patchify_proj.weight")),
    (Kind.QWEN, blank("transformer_blocks.0.attn.add_q_proj.weight")),
    (Kind.UNKNOWN, blank("a.weight", "b.weight")),
]


@pytest.mark.parametrize(("kind", "tensors"), KINDS, ids=[f"{kind.name}-{i}" for i, (kind, _) in enumerate(KINDS)])
def test_a_kind_is_told_by_its_marks(kind, tensors):
    assert identify(normalise_names(tensors)) is kind


def test_all_kinds_are_tried():
    assert {kind for kind, _ in KINDS} == set(Kind)


@pytest.mark.parametrize(("kind", "tensors"), KINDS, ids=[f"{kind.name}-{i}" for i, (kind, _) in enumerate(KINDS)])
def test_only_text_to_video_weights_make_a_model(save, kind, tensors):
    path = save("file.safetensors", tensors)
    if kind is Kind.WAN_T2V:
        with pytest.raises(WeightsError, match="lacks"):
            load_model(path, num_heads=2)
    else:
        with pytest.raises(WeightsError) as caught:
            load_model(path)
        what, expected, cure = str(caught.value).split("; ")
        assert what.startswith(f"file.safetensors holds {kind}")
        assert expected == "expected LongLive or Wan2.1 text-to-video weights"
        assert cure


def test_the_recorded_files_are_what_they_are():
    assert identify(load_file(CAUSAL)) is Kind.WAN_T2V
    for name, kind in (("vae", Kind.VAE), ("t5", Kind.UMT5)):
        tensors = load_file(REFERENCE / f"{name}.safetensors")
        bare = {key.removeprefix("sd."): tensor for key, tensor in tensors.items() if key.startswith("sd.")}
        assert identify(bare) is kind


def test_the_cure_for_an_unknown_file_names_what_was_found(save):
    with pytest.raises(WeightsError, match=r"unknown model \(a, b, c, \.\.\.\); .*; download models/longlive_base\.pt"):
        load_model(save("x.safetensors", blank("a", "b", "c", "d")))


# refusals of files


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(WeightsError, match=r"gone\.pt does not exist; give a \.safetensors or \.pt file"):
        read_weights_file(tmp_path / "gone.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; download it again"),
        (b"GGUF\x03\x00\x00\x00", "is a GGUF file; load it with a GGUF loader"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer .*; run `git lfs pull`"),
        (b"\n<!DOCTYPE html><html>", "is a web page instead of the weights; download the file itself"),
        (b"just some text, long enough", "holds neither weights nor a session; expected"),
        (b"\x00" * 100, "holds neither weights nor a session"),
        (b"PK\x03\x04" + bytes(50), "is truncated"),
        (b"\x80\x02" + bytes(50), "is damaged or not a torch file|is a pickle of more than tensors"),
    ],
)
def test_what_is_no_weights_file_is_told_by_its_first_bytes(save, content, message):
    with pytest.raises(WeightsError, match=message):
        read_weights_file(save("file.pt", content))


@pytest.mark.parametrize("name", ["new.pt", "old.pt", "new.safetensors"])
@pytest.mark.parametrize("kept", [0.01, 0.5, 0.999])
def test_a_truncated_file_is_refused_wherever_it_ends(base, save, name, kept):
    options = {"_use_new_zipfile_serialization": False} if name == "old.pt" else {}
    whole = save(name, base, **options).read_bytes()
    with pytest.raises(WeightsError, match=r"truncated|damaged|more than tensors"):
        read_weights_file(save(name, whole[: int(len(whole) * kept)]))


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_code_is_refused_and_not_run(tmp_path, save, zipped):
    fired = tmp_path / "fired"
    path = save("evil.pt", {"generator": Trap(fired)}, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match=r"evil\.pt is a pickle of more than tensors \(.*\), so it was refused"):
        load_model(path)
    assert not fired.exists()


def test_a_plain_pickle_is_refused_and_not_run(tmp_path, save):
    fired = tmp_path / "fired"
    path = save("evil.pt", pickle.dumps(Trap(fired), protocol=2))
    with pytest.raises(WeightsError):
        read_weights_file(path)
    assert not fired.exists()


def test_objects_beside_the_tensors_are_named(save):
    with pytest.raises(WeightsError, match=r"\(argparse\.Namespace\), so it was refused"):
        read_weights_file(save("train.pt", {"generator": blank("x"), "args": argparse.Namespace()}))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list; expected tensors by name"),
        (torch.zeros(3), "holds a Tensor; expected tensors by name"),
        ({}, r"holds nothing; expected tensors"),
        (
            {"critic": blank("x"), "step": torch.tensor(7)},
            r"holds critic, step; expected .* generator.*; use a checkpoint",
        ),
        ({"critic_lora": blank("x"), "step": 7}, "holds critic_lora, step; expected"),
        ({"generator": {}}, "holds nothing; expected"),
        ({"model.x": torch.zeros(2), "x": torch.zeros(2)}, "has two tensors for x; save one model in one file"),
    ],
)
def test_a_torch_file_without_a_model_is_refused(save, content, message):
    with pytest.raises(WeightsError, match=message):
        read_weights_file(save("file.pt", content))


def test_an_average_that_is_not_there_is_refused(base, save):
    with pytest.raises(WeightsError, match="has no generator_ema, but generator, step; leave `ema` off"):
        read_weights_file(save("a.pt", {"generator": base, "step": 1}), ema=True)
    with pytest.raises(WeightsError, match="has no generator_ema"):
        read_weights_file(CAUSAL, ema=True)
    with pytest.raises(WeightsError, match="has no generator, but only generator_ema; turn `ema` on"):
        read_weights_file(save("b.pt", {"generator_ema": base}), ema=False)


def test_a_folder_that_describes_nothing_is_refused(tmp_path, save):
    save("models/longlive_base.pt", blank("x"))
    with pytest.raises(WeightsError, match=r"without config\.json \(weights found in it: models/longlive_base\.pt\)"):
        read_weights_file(tmp_path)


def test_a_folder_without_weights_is_refused(save):
    folder = save("wan/config.json", "{}").parent
    with pytest.raises(WeightsError, match=r"lacks diffusion_pytorch_model\*\.safetensors; download"):
        read_weights_file(folder)
    save("wan/diffusion_pytorch_model.safetensors", blank("x"))
    save("wan/config.json", "{oops")
    with pytest.raises(WeightsError, match=r"config\.json is not JSON"):
        read_weights_file(folder)
    save("wan/config.json", "[]")
    with pytest.raises(WeightsError, match=r"config\.json holds a list; expected a JSON object"):
        read_weights_file(folder)


# refusals of models


def test_tensors_missing_left_over_and_of_another_shape_are_named(base, save):
    weights = dict(base)
    del weights["blocks.1.ffn.2.bias"]
    weights["extra.weight"] = torch.zeros(1)
    weights["head.head.bias"] = torch.zeros(3)
    with pytest.raises(WeightsError) as caught:
        load_model(save("x.pt", weights), **TINY)
    message = str(caught.value)
    assert "1 missing (blocks.1.ffn.2.bias)" in message
    assert "1 left over (extra.weight)" in message
    assert "1 of another shape (head.head.bias [3] for [64])" in message
    assert message.endswith("download models/longlive_base.pt from huggingface.co/Efficient-Large-Model/LongLive-1.3B")


def test_many_misfits_are_counted_and_the_first_named(base, save):
    weights = {name: tensor for name, tensor in base.items() if not name.startswith("blocks.0.cross_attn")}
    with pytest.raises(WeightsError, match=r"10 missing \((\S+, ){3}\S+ and 6 more\)"):
        load_model(save("x.pt", weights), **TINY)


@pytest.mark.parametrize("missing", ["patch_embedding.weight", "head.head.weight", "text_embedding.0.weight"])
def test_a_tensor_that_gives_the_sizes_is_missed_by_name(base, save, missing):
    weights = {name: tensor for name, tensor in base.items() if name != missing}
    with pytest.raises(WeightsError, match=f"lacks {missing}; download"):
        load_model(save("x.pt", weights), **TINY)


@pytest.mark.parametrize("shape", [(32,), (32, 16), (32, 16, 2, 2)])
def test_a_patch_embedding_of_other_dimensions_is_refused(base, save, shape):
    with pytest.raises(WeightsError, match=r"sizes that no Wan2\.1 network has"):
        load_model(save("x.pt", base | {"patch_embedding.weight": torch.zeros(shape)}), **TINY)


def test_heads_that_nothing_states_are_asked_for(base, save):
    path = save("x.safetensors", base)
    problem = "is 32 wide, not a multiple of 128, and states no heads; give `num_heads`"
    with pytest.raises(WeightsError, match=problem):
        load_model(path)
    with pytest.raises(WeightsError, match="which 5 heads do not divide"):
        load_model(path, num_heads=5)
    model, _ = load_model(path, num_heads=4)
    assert (model.num_heads, model.text_len) == (4, 512)


def test_weights_that_contradict_what_is_stated_are_refused(base, save):
    stated = {"geometry": json.dumps({"num_layers": 30, "num_heads": 2})}
    with pytest.raises(WeightsError, match="states num_layers 30 but has 2; download it again"):
        load_model(save("x.safetensors", base, metadata=stated))
    with pytest.raises(WeightsError, match=r"the metadata `geometry` of x\.safetensors is not JSON"):
        load_model(save("x.safetensors", base, metadata={"geometry": "?"}))


# files that anyone may have written


@pytest.mark.parametrize("name", ["99999", "2", "-1", "x", "\u0663", "1_0", "+1", "00", "9" * 400])
def test_layers_are_counted_by_names_alone_and_without_a_gap(base, save, monkeypatch, name):
    monkeypatch.setattr(load, "WanModel", None)  # building 100 000 layers takes minutes
    path = save("x.safetensors", base | {f"blocks.{name}.x": torch.zeros(1)})
    if name == "2":  # the next one, of which all but one tensor is missing
        monkeypatch.undo()
    with pytest.raises(WeightsError, match=r"is in no layer|but no layer 2|27 missing|names of up to"):
        load_model(path, **TINY)


def test_more_layers_than_any_model_has_are_refused(base, save):
    with pytest.raises(WeightsError, match="it has 1000 layers, expected at most 256"):
        load_model(save("x.safetensors", base | {f"blocks.{n}.x": torch.zeros(1) for n in range(1000)}), **TINY)


@pytest.mark.parametrize("name", ["num_heads", "text_len"])
@pytest.mark.parametrize("value", ["a", 0.5, 2.0, -1, 0, 10**18, [2], {}, True])
def test_a_geometry_that_is_none_is_refused(base, save, name, value):
    stated = {"num_heads": 2, "text_len": 8} | {name: value}
    path = save("x.safetensors", base, metadata={"geometry": json.dumps(stated)})
    with pytest.raises(WeightsError, match=r"^x\.safetensors has sizes that no Wan2\.1 network has: .*; download"):
        load_model(path)


@pytest.mark.parametrize("value", ["x" * 10**6, None, [[]], {"a": 5}, "\x1b[2J"])
def test_sizes_that_are_none_are_refused_in_a_short_sentence(base, save, value):
    stated = {"num_heads": 2, "text_len": 8, "ffn_dim": value}
    with pytest.raises(WeightsError, match=r"states ffn_dim .* but has 64") as caught:
        load_model(save("x.safetensors", base, metadata={"geometry": json.dumps(stated)}))
    assert_harmless(caught.value)


def assert_harmless(error):
    assert len(str(error)) < 1500
    assert str(error).isprintable()


@pytest.mark.parametrize(
    "change",
    [
        {"patch_embedding.weight": torch.zeros(0, 16, 1, 2, 2)},
        {"patch_embedding.weight": torch.zeros(32, 16, 1, 1, 2)},
        {"patch_embedding.weight": torch.zeros(32, 16, 1, 0, 2)},
        {"patch_embedding.weight": torch.zeros(2**17, 16, 1, 0, 2)},
        {"patch_embedding.weight": torch.zeros(6, 16, 1, 2, 2)},
        {"patch_embedding.weight": torch.tensor(1.0)},
        {"blocks.0.ffn.0.weight": torch.tensor(1.0)},
        {"blocks.0.ffn.0.weight": torch.zeros(2**40, 0)},
        {"time_embedding.0.weight": torch.zeros(32)},
        {"text_embedding.0.weight": torch.zeros(32, 0)},
        {"head.head.weight": torch.zeros(32, 32)},
        {"head.head.weight": torch.zeros(64)},
    ],
    ids=lambda change: "{} {}".format(*next((name, list(x.shape)) for name, x in change.items())),
)
def test_sizes_that_make_no_network_are_refused(base, save, change):
    path = save("x.safetensors", base | change)
    with pytest.raises(WeightsError, match=r"sizes that no Wan2\.1 network has|16 channels and makes 8|holds "):
        load_model(path, **TINY)


@pytest.mark.parametrize("text", ["[" * 10**5, '{"a": NaN}', '{"num_heads": 2, "num_heads": 2}', "{" + "9" * 10**6])
def test_json_that_is_a_bomb_is_refused(base, save, text):
    with pytest.raises(WeightsError, match=r"the metadata `geometry` of x\.safetensors is not JSON") as caught:
        load_model(save("x.safetensors", base, metadata={"geometry": text}))
    assert_harmless(caught.value)


@pytest.mark.parametrize("config", ['{"transformer": 5}', '{"transformer": null}', '{"transformer": []}'])
def test_metadata_of_another_form_says_nothing(base, save, config):
    path = save("x.safetensors", base, metadata={"config": config, "geometry": '{"num_heads": 2, "_class_name": 5}'})
    assert "trained   not stated" in describe_file(path)


@pytest.mark.parametrize(
    "weight_map",
    [
        *(5, [1], {"a": 5}, {"a": None}, {"a": ["x"]}, {"a": "../x.safetensors"}, {"a": "/etc/passwd"}, {"a": "b/c"}),
        *({"a": "..\\x"}, {"a": "C:x"}, {"a": ""}, {"a": "."}, {"a": "x\0"}, {"a": "\x1b[2J" * 10**5}),
    ],
)
def test_an_index_names_files_beside_it_and_nothing_else(base, save, weight_map):
    folder = save("wan/config.json", json.dumps(TINY)).parent
    save("x.safetensors", base)
    save("wan/diffusion_pytorch_model.safetensors.index.json", json.dumps({"weight_map": weight_map}))
    with pytest.raises(WeightsError, match=r"index\.json names .* as a file beside it; download") as caught:
        load_model(folder)
    assert_harmless(caught.value)


@pytest.mark.parametrize(
    "name", ["config.json", "diffusion_pytorch_model.safetensors.index.json", "diffusion_pytorch_model.safetensors"]
)
def test_a_pipe_in_a_folder_is_refused_at_once(base, save, name):
    folder = save("wan/config.json", json.dumps(TINY)).parent
    save("wan/diffusion_pytorch_model.safetensors", base)
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(WeightsError, match=r"it is a pipe, not a file|without config\.json|lacks"):
        load_model(folder)


def test_a_pipe_a_device_and_a_name_that_is_none_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.pt")
    for path in (tmp_path / "pipe.pt", Path("/dev/zero"), Path("a\0b"), Path("~nobody-of-this-name/x.pt")):
        with pytest.raises(WeightsError, match=r"cannot be read|does not exist"):
            read_weights_file(path)


def test_an_error_of_a_giant_header_is_short(save):
    header = json.dumps({"x" * 10**7: {"dtype": "\x1b[2J" * 10, "shape": [1], "data_offsets": [0, 4]}}).encode()
    with pytest.raises(WeightsError, match=r"is truncated or damaged") as caught:
        read_weights_file(save("x.safetensors", len(header).to_bytes(8, "little") + header + bytes(4)))
    assert_harmless(caught.value)


def test_a_header_larger_than_any_model_needs_is_refused(save):
    header = b"{" + b" " * (33 << 20)
    with pytest.raises(WeightsError, match="has a header of 34,603,009 bytes, expected at most 33,554,432"):
        read_weights_file(save("x.safetensors", len(header).to_bytes(8, "little") + header + bytes(len(header))))


@pytest.mark.parametrize("shape", [[2**40], [2**62, 2**62, 0], [-1], [1.5], "x", [2**70]])
def test_a_header_of_absurd_shapes_is_refused_before_anything_is_allocated(save, shape):
    header = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}}).encode()
    with pytest.raises(WeightsError):
        read_weights_file(save("x.safetensors", len(header).to_bytes(8, "little") + header))


def test_names_that_take_minutes_to_read_are_refused(save):
    with pytest.raises(WeightsError, match="names of up to 6,000,001 characters; expected at most 100,000 and 500"):
        read_weights_file(save("x.pt", {"model." * 10**6 + "x": torch.zeros(2)}))


def test_many_names_twice_are_counted_in_a_moment(save):
    pairs = {f"{prefix}{n}": torch.zeros(1) for n in range(20_000) for prefix in ("", "model.")}
    with pytest.raises(WeightsError, match=r"has two tensors for 0, 1, 10, 100 and 19996 more"):
        normalise_names(pairs)


def packed(path, *, compression=zipfile.ZIP_DEFLATED, twice=False):
    """The same archive as another tool packs it."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", compression) as archive:
        warnings.simplefilter("ignore")  # of a name twice
        for name, content in [*records.items()] * (2 if twice else 1):
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_torch_file_packed_by_another_tool_is_refused(base, save, compression):
    with pytest.raises(WeightsError, match=r"x\.pt was compressed or encrypted after it was saved \(.*use the file"):
        load_model(packed(save("x.pt", base), compression=compression), **TINY)


def test_a_torch_file_packed_again_without_compression_loads(base, save):
    assert_loads_as(base, packed(save("x.pt", base), compression=zipfile.ZIP_STORED))


def test_an_encrypted_torch_file_is_refused(base, save):
    path = save("x.pt", base)
    content = bytearray(path.read_bytes())
    directory = content.rindex(b"PK\x01\x02")
    content[directory + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="was compressed or encrypted"):
        read_weights_file(path)


def test_a_torch_file_with_a_record_twice_is_refused(base, save):
    with pytest.raises(WeightsError, match="holds records twice or within each other"):
        read_weights_file(packed(save("x.pt", base), compression=zipfile.ZIP_STORED, twice=True))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "expanded",
    [
        torch.zeros(1).expand(30_000, 30_000),
        torch.zeros(1000).as_strided((30_000, 900), (0, 1)),
        torch.zeros(60_000).as_strided((30_000, 30_000), (1, 1)),
    ],
)
def test_tensors_much_larger_than_their_file_are_refused(base, save, zipped, expanded):
    path = save("x.pt", base | {"head.head.weight": expanded}, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match=r"has [0-9,]+ bytes, but its tensors would take [0-9,]+; save them"):
        load_model(path, **TINY)


def test_tied_tensors_load(base, save):
    tied = base | {"blocks.1.modulation": base["blocks.0.modulation"]}
    assert_loads_as(tied, save("x.pt", tied))


def in_itself():
    state = {"x": torch.zeros(2)}
    state["state_dict"] = state["model"] = state
    return state


class Shadowed:
    """A pickle of this is one of a dict and a tensor with attributes in the place of their methods."""

    def __reduce__(self):
        x = torch.zeros(2)
        x.dim = x.numel = 5
        return OrderedDict, (), {"items": 5, "get": 5, "keys": 5}, None, iter({"x": x}.items())


ODD_STATES = {
    "a dict in itself": in_itself(),
    "attributes in the place of methods": Shadowed(),
    "names that are none": {5: torch.zeros(2), (1, 2): torch.zeros(2), None: 1, 10**5000: 2, "x": torch.zeros(2)},
    "sparse": {"x": torch.zeros(2, 2).to_sparse()},
    "meta": {"x": torch.zeros(2, 2, device="meta")},
    "negated": {"x": torch.zeros(2, dtype=torch.complex64).conj().imag},
    "escape codes": {"\x1b[2J" * 50: torch.zeros(2)},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("state", ODD_STATES.values(), ids=ODD_STATES.keys())
@pytest.mark.parametrize("zipped", [True, False])
def test_odd_pickles_are_described_or_refused(save, state, zipped):
    path = save("x.pt", state, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError) as caught:
        load_model(path)
    assert_harmless(caught.value)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_crash_python_is_refused(save, zipped):
    """A million tuples in each other as a name: its hash overflows the stack."""
    path = save("x.pt", {"x": torch.zeros(2)}, _use_new_zipfile_serialization=zipped)
    deep = b"\x80\x02})" + b"\x85" * 1_000_000 + b"K\x01s."
    if zipped:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x/data.pkl", deep)
    else:
        path.write_bytes(b"".join(pickle.dumps(x, 2) for x in (119547037146038801333356, 1001, {})) + deep)
    with pytest.raises(WeightsError, match="holds a pickle of more than 40,000 tuples"):
        read_weights_file(path)


def test_a_torch_file_whose_pickle_was_changed_is_refused(base, save):
    path = save("x.pt", base)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"blocks.0.", b"blocks.7.", 1))
    with pytest.raises(WeightsError, match=r"x\.pt is truncated or damaged \(Bad CRC-32.*; download it again"):
        read_weights_file(path)


# numbers that are none


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e5m2])
def test_weights_that_are_not_finite_are_refused(base, save, value, dtype):
    spoilt = {name: tensor.clone() for name, tensor in base.items()}
    spoilt["blocks.1.ffn.2.bias"][-1] = value
    path = save("x.safetensors", {name: tensor.to(dtype) for name, tensor in spoilt.items()})
    with pytest.raises(WeightsError, match=r"x\.safetensors holds NaN or infinity in blocks\.1\.ffn\.2\.bias; down"):
        load_model(path, **TINY)


def test_weights_too_large_for_their_dtype_are_refused(base, save):
    path = save("x.safetensors", base | {"head.head.bias": torch.full((64,), 1e5)})
    load_model(path, **TINY)
    with pytest.raises(WeightsError, match=r"numbers too large for float16 in head\.head\.bias; use bfloat16"):
        load_model(path, dtype=torch.float16, **TINY)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.complex64])
def test_weights_that_no_network_computes_with_are_refused(base, save, dtype):
    path = save("x.pt", base | {"head.head.bias": torch.ones(64).to(dtype)})
    with pytest.raises(WeightsError, match=r"1 of an unknown dtype \(head\.head\.bias "):
        load_model(path, **TINY)


# what a user sees


def test_a_training_checkpoint_is_described(base, save):
    path = save("long.pt", {"generator": prefixed(base, "model."), "critic": {}, "step": 3})
    lines = describe_file(path).splitlines()
    assert lines[0] == "long.pt"
    assert "  kind      Wan2.1 text-to-video weights" in lines
    assert '  layout    generator (of generator, critic, step), names after "model."' in lines
    assert "  tensors   69, 40,096 parameters in float32" in lines
    assert "  trained   causal" in lines
    assert "give `num_heads`" in lines[5]


def test_recorded_weights_are_described():
    text = describe_file(CAUSAL)
    assert "  geometry  width 32, feed-forward 64, 2 heads, 2 layers, text 8 x 24, channels 16 in and 16 out" in text
    assert "not stated" in text


def test_other_files_are_described_without_a_refusal(save):
    tensors = blank("encoder.downsamples.0.residual.0.gamma", **{"decoder.head.2.weight": (3, 96, 3, 3, 3)})
    assert "  width     96" in describe_file(save("vae.pt", tensors))
    text = describe_file(save("x.safetensors", blank(*"abcdefgh")))
    assert "weights of an unknown model" in text
    assert "  names     a, b, c, d, e, f and 2 more" in text


@pytest.mark.parametrize(
    ("metadata", "trained"),
    [({"config": '{"transformer": {"causal_ar": true}}'}, "causal"), ({"config": "{}"}, "not stated")],
)
def test_metadata_of_the_host_says_whether_weights_are_causal(base, save, metadata, trained):
    assert f"trained   {trained}" in describe_file(
        save("x.safetensors", base, metadata=metadata | {"geometry": '{"num_heads": 2}'})
    )
