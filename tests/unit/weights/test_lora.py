"""A LoRA: merged as the reference adds it, with its strength and its alpha, into weights and into a model."""

import json

import pytest
import torch
from safetensors import safe_open
from tiny_loras import PEFT, TOLERANCE, assert_same, cut_prefix, merge, save_tensors
from tiny_weights import CAUSAL, REFERENCE

from longlive.errors import WeightsError
from longlive.weights.load import load_model, merge_weights
from longlive.weights.lora import FactorPair, Lora
from longlive.weights.weights_file import read_weights_file


def compute_statistics(tensor):
    flat = tensor.flatten()
    return torch.cat([torch.stack([flat.double().mean(), flat.double().abs().mean()]), flat[:8], flat[-8:]]).float()


def test_merged_weights_are_those_recorded(base, recorded, lora):
    merged, report = merge(base, lora)
    weights, rows = cut_prefix("merged.", recorded), cut_prefix("merged_stats.", recorded)
    assert (len(weights), len(rows), report.matched) == (10, 20, 20)
    for name, expected in weights.items():
        torch.testing.assert_close(merged[name], expected, rtol=0, atol=TOLERANCE, msg=name)
    for name, expected in rows.items():
        torch.testing.assert_close(
            compute_statistics(merged[name]), expected.flatten(), rtol=0, atol=TOLERANCE, msg=name
        )
    assert any((merged[name] - base[name]).abs().max() > 100 * TOLERANCE for name in weights)


def test_rank_and_alpha_are_those_recorded(lora):
    with safe_open(REFERENCE / "lora.safetensors", "pt") as file:
        stated = file.metadata()
    assert lora.ranks == (int(stated["rank"]),)
    assert lora.alphas == (float(stated["alpha"]),)
    assert 2 * len(lora.pairs) == int(stated["adapter_tensors"])


def test_a_merge_writes_nothing_it_was_given_and_shares_what_it_leaves(base, lora):
    before = {name: tensor.clone() for name, tensor in base.items()}
    merged, _ = merge(base, lora)
    assert_same(base, before)
    untouched = [name for name in base if merged[name] is base[name]]
    assert len(untouched) == len(base) - 20


def test_strength_scales_what_is_added_and_zero_adds_nothing(base, lora):
    whole, half, none = (merge(base, lora, strength)[0] for strength in (1.0, 0.5, 0.0))
    name = "blocks.1.ffn.0.weight"
    torch.testing.assert_close(half[name] - base[name], (whole[name] - base[name]) / 2, rtol=0, atol=1e-7)
    assert none[name] is base[name]
    torch.testing.assert_close(merge(whole, lora, -1.0)[0][name], base[name], rtol=0, atol=1e-6)


def test_half_precision_is_summed_in_full_and_rounded_once(base, adapter, tmp_path):
    halves = {name: tensor.bfloat16() for name, tensor in base.items()}
    lora = Lora.read(save_tensors(tmp_path, {name: tensor.bfloat16() for name, tensor in adapter.items()}))
    name = "blocks.0.self_attn.q.weight"
    pair = lora.pairs["blocks.0.self_attn.q"]
    expected = (halves[name].double() + pair.up.double() @ pair.down.double()).float().bfloat16()
    merged = merge(halves, lora)[0][name]
    assert merged.dtype == torch.bfloat16
    torch.testing.assert_close(merged, expected, rtol=0, atol=0)


def test_a_convolution_is_merged_over_all_its_inputs():
    weight, down, up = torch.randn(6, 2, 1, 2, 2), torch.randn(3, 2, 1, 2, 2), torch.randn(6, 3, 1, 1, 1)
    expected = weight + torch.einsum("orxyz,rcthw->octhw", up, down)
    torch.testing.assert_close(FactorPair(down, up, 3.0).add_to(weight), expected)


def test_alpha_is_given_or_stated_or_the_rank(base, adapter, tmp_path):
    name = "blocks.0.self_attn.q.weight"
    own = adapter | {f"{PEFT}{name.removesuffix('weight')}alpha": torch.tensor(8.0)}
    added = merge(base, Lora.read(save_tensors(tmp_path, adapter)))[0][name] - base[name]
    for factor, lora in (
        (2, Lora.read(save_tensors(tmp_path, own))),
        (0.5, Lora.read(save_tensors(tmp_path, own), alpha=2)),
        (0.25, Lora.read(save_tensors(tmp_path, adapter), alpha=1)),
        (3, Lora.read(save_tensors(tmp_path, adapter, "lora.safetensors", metadata={"alpha": "12"}))),
    ):
        torch.testing.assert_close(merge(base, lora)[0][name] - base[name], factor * added, rtol=1e-4, atol=1e-6)
    with pytest.raises(WeightsError, match="states alpha 'many', which is not a number; give `alpha`"):
        Lora.read(save_tensors(tmp_path, adapter, "lora.safetensors", metadata={"alpha": "many"}))


def test_a_peft_folder_states_its_alpha(adapter, tmp_path):
    save_tensors(tmp_path, adapter, "peft/adapter_model.safetensors")
    config = tmp_path / "peft" / "adapter_config.json"
    config.write_text(json.dumps({"r": 4, "lora_alpha": 8}))
    assert Lora.read(config.parent).alphas == (8.0,)
    config.write_text(json.dumps({"r": 4, "lora_alpha": 8, "use_rslora": True}))
    with pytest.raises(WeightsError, match=r"is not a plain LoRA \(use_rslora\); merge it with the tool that made it"):
        Lora.read(config.parent)


def test_an_adapter_outlives_its_file(adapter, tmp_path):
    path = save_tensors(tmp_path, adapter)
    lora = Lora.read(path)
    path.write_bytes(bytes(path.stat().st_size))  # would reach mapped tensors
    torch.testing.assert_close(lora.pairs["blocks.0.ffn.0"].up, adapter[f"{PEFT}blocks.0.ffn.0.lora_B.weight"])


# a model with a LoRA


def test_a_model_loads_with_its_lora_merged(base, adapter, lora, tmp_path):
    path = save_tensors(tmp_path, {"generator_lora": adapter}, "lora.pt")
    for given in (path, str(path), Lora.read(path)):
        model, report = load_model(CAUSAL, lora=given, strength=0.5)
        assert_same(dict(model.state_dict()), merge(base, lora, 0.5)[0])
    assert report.lora.matched == 20
    assert str(report).endswith("in float32 with lora.pt on 20 modules")


def test_a_model_merges_in_full_precision_before_it_is_rounded(base, lora):
    model, _ = load_model(CAUSAL, lora=lora, dtype=torch.bfloat16)
    assert_same(dict(model.state_dict()), {name: t.bfloat16() for name, t in merge(base, lora)[0].items()})


def test_a_lora_in_the_models_place_is_refused_and_the_other_way_round(adapter, tmp_path):
    with pytest.raises(
        WeightsError, match=r"holds a LoRA for LongLive or Wan.*; expected LongLive .*; give it as the LoRA"
    ):
        load_model(save_tensors(tmp_path, adapter))
    with pytest.raises(
        WeightsError, match=r"holds Wan.* text-to-video weights; expected a LoRA for LongLive.*; download"
    ):
        Lora.read(CAUSAL)


def test_a_wider_dtype_than_the_files_keeps_the_whole_sum(base, lora, tmp_path):
    halves = {name: tensor.bfloat16() for name, tensor in base.items()}
    model, _ = load_model(save_tensors(tmp_path, halves, "base.pt"), lora=lora, dtype=torch.float32, num_heads=2)
    expected = merge({name: tensor.float() for name, tensor in halves.items()}, lora)[0]
    assert_same(dict(model.state_dict()), expected)


def test_a_host_gets_the_merged_weights_in_the_dtypes_of_the_file(base, adapter, lora, tmp_path):
    mixed = {name: tensor if "modulation" in name else tensor.bfloat16() for name, tensor in base.items()}
    weights = read_weights_file(save_tensors(tmp_path, {"generator": mixed}, "base.pt"))
    state, report = merge_weights(weights.stating(num_heads=2), lora=lora)
    assert_same(state, merge(mixed, lora)[0])
    assert report.dtype == torch.bfloat16
    assert not any(state[name] is weights.tensors[name] for name in state)
