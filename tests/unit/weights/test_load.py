"""Weights files: every layout gives the same model; weights that make no model are refused with the cure."""

import json
import logging

import pytest
import torch
from tiny_weights import CAUSAL, TINY, add_prefix, assert_loads_as, make_tensors

from longlive.errors import WeightsError
from longlive.weights.describe import describe_file
from longlive.weights.load import load_model
from longlive.weights.weights_file import EMA, read_weights_file


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


def test_the_format_follows_from_the_content_and_not_from_the_suffix(base, save):
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
    path = save("model.pt", {"generator": add_prefix(base, prefix)})
    assert assert_loads_as(base, path).layout == "generator"
    assert read_weights_file(path).prefix == prefix


def test_marks_of_wrappers_are_stripped_wherever_they_stand(base, save):
    assert_loads_as(base, save("model.pt", {"model": wrap_names(base)}))


def wrap_names(weights):
    def wrap(name):
        name = name.replace("self_attn.", "_checkpoint_wrapped_module.self_attn._orig_mod.")
        return "model." + name.replace("blocks.0.", "blocks.0._fsdp_wrapped_module.")

    return {wrap(name): tensor for name, tensor in weights.items()}


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
            "generator_ema": add_prefix(averaged, "model._fsdp_wrapped_module."),
            "critic": make_tensors("x"),
            "generator": add_prefix(base, "model."),
            "step": torch.tensor(700),
        },
    )
    assert assert_loads_as(base, path).layout == "generator"
    assert assert_loads_as(base, path, ema=False).layout == "generator"
    assert assert_loads_as(averaged, path, ema=True).layout == "generator_ema"


@pytest.mark.parametrize(
    ("name", "layout"),
    [("rolling_forcing_dmd.pt", EMA), ("Rolling_Forcing_DMD_2.pt", EMA), ("longvideo.pt", "generator")],
)
def test_the_average_in_a_file_of_rolling_forcing_is_used_as_by_its_authors(base, save, name, layout):
    averaged = {name: tensor + 1 for name, tensor in base.items()}
    state = {"generator": wrap_names(base), "critic": make_tensors("x"), EMA: wrap_names(averaged)}
    path = save(name, state)
    assert assert_loads_as(averaged if layout == EMA else base, path).layout == layout
    assert assert_loads_as(base, path, ema=False).layout == "generator"
    assert assert_loads_as(averaged, path, ema=True).layout == EMA
    assert "generator, critic, generator_ema" in describe_file(path)
    assert assert_loads_as(base, save(f"bare_{name}", {"generator": base})).layout == "generator"


@pytest.mark.parametrize("num_shards", [1, 2])
def test_a_released_folder_loads_with_or_without_its_index(base, save, num_shards):
    names = list(base)
    config = save("wan/config.json", json.dumps({"_class_name": "WanModel", "num_heads": 2, "text_len": 8, "dim": 32}))
    save("wan/models_t5.pth", make_tensors("not.read"))
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
