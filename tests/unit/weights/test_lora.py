"""Adapters: merged as the reference adds them, in every spelling; whatever does not fit is refused or named."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from longlive.errors import ConfigError, WeightsError
from longlive.weights.describe import describe_file
from longlive.weights.load import load_model, merge_weights
from longlive.weights.lora import FactorPair, Lora, MergeReport
from longlive.weights.weights_file import read_weights_file

REFERENCE = Path(__file__).parents[1].parent / "reference"
CAUSAL = REFERENCE / "weights_causal.safetensors"
TOLERANCE = 1e-5
PEFT = "base_model.model."


def merge(
    weights: Mapping[str, torch.Tensor], lora: Lora, strength: float = 1.0
) -> tuple[dict[str, torch.Tensor], MergeReport]:
    """A state dict with the LoRA in it, each weight in its own dtype."""
    report, scaled = lora.match(weights), lora.scaled_by(strength)
    merged = {name: scaled.merge_into(name, weight).to(weight.dtype) for name, weight in weights.items()}
    return merged, report


@pytest.fixture(scope="module")
def base():
    return load_file(CAUSAL)


@pytest.fixture(scope="module")
def recorded():
    return load_file(REFERENCE / "lora.safetensors")


@pytest.fixture(scope="module")
def adapter(recorded):
    """The recorded adapter, 40 tensors in PEFT's spelling."""
    return under("lora.", recorded)


@pytest.fixture
def lora(adapter, tmp_path):
    return Lora.read(saved(tmp_path, adapter))


def under(prefix, tensors):
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def saved(folder, content, name="lora.pt", **options):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(content, path, **options) if name.endswith(".safetensors") else torch.save(content, path)
    return path


def statistics(tensor):
    flat = tensor.flatten()
    return torch.cat([torch.stack([flat.double().mean(), flat.double().abs().mean()]), flat[:8], flat[-8:]]).float()


def assert_same(merged, expected):
    assert merged.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(merged[name], tensor, rtol=0, atol=0, msg=name)


def renamed(adapter, rename):
    return {rename(name): tensor for name, tensor in adapter.items()}


def kohya(name):
    module, _, factor = name.removeprefix(PEFT).partition(".lora_")
    factor = {"A.weight": "lora_down.weight", "B.weight": "lora_up.weight"}[factor]
    return f"lora_unet_{module.replace('.', '_')}.{factor}"


# the formula


def test_merged_weights_are_those_recorded(base, recorded, lora):
    merged, report = merge(base, lora)
    weights, rows = under("merged.", recorded), under("merged_stats.", recorded)
    assert (len(weights), len(rows), report.matched) == (10, 20, 20)
    for name, expected in weights.items():
        torch.testing.assert_close(merged[name], expected, rtol=0, atol=TOLERANCE, msg=name)
    for name, expected in rows.items():
        torch.testing.assert_close(statistics(merged[name]), expected.flatten(), rtol=0, atol=TOLERANCE, msg=name)
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
    lora = Lora.read(saved(tmp_path, {name: tensor.bfloat16() for name, tensor in adapter.items()}))
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


# alpha


def test_alpha_is_given_or_stated_or_the_rank(base, adapter, tmp_path):
    name = "blocks.0.self_attn.q.weight"
    own = adapter | {f"{PEFT}{name.removesuffix('weight')}alpha": torch.tensor(8.0)}
    added = merge(base, Lora.read(saved(tmp_path, adapter)))[0][name] - base[name]
    for factor, lora in (
        (2, Lora.read(saved(tmp_path, own))),
        (0.5, Lora.read(saved(tmp_path, own), alpha=2)),
        (0.25, Lora.read(saved(tmp_path, adapter), alpha=1)),
        (3, Lora.read(saved(tmp_path, adapter, "lora.safetensors", metadata={"alpha": "12"}))),
    ):
        torch.testing.assert_close(merge(base, lora)[0][name] - base[name], factor * added, rtol=1e-4, atol=1e-6)
    with pytest.raises(WeightsError, match="states alpha 'many', which is not a number; give `alpha`"):
        Lora.read(saved(tmp_path, adapter, "lora.safetensors", metadata={"alpha": "many"}))


def test_a_peft_folder_states_its_alpha(adapter, tmp_path):
    saved(tmp_path, adapter, "peft/adapter_model.safetensors")
    config = tmp_path / "peft" / "adapter_config.json"
    config.write_text(json.dumps({"r": 4, "lora_alpha": 8}))
    assert Lora.read(config.parent).alphas == (8.0,)
    config.write_text(json.dumps({"r": 4, "lora_alpha": 8, "use_rslora": True}))
    with pytest.raises(WeightsError, match=r"is not a plain LoRA \(use_rslora\); merge it with the tool that made it"):
        Lora.read(config.parent)


def test_an_adapter_outlives_its_file(adapter, tmp_path):
    path = saved(tmp_path, adapter)
    lora = Lora.read(path)
    path.write_bytes(bytes(path.stat().st_size))  # would reach mapped tensors
    torch.testing.assert_close(lora.pairs["blocks.0.ffn.0"].up, adapter[f"{PEFT}blocks.0.ffn.0.lora_B.weight"])


# spellings


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name,
        lambda name: name.replace(".weight", ".default.weight"),
        lambda name: name.removeprefix(PEFT),
        lambda name: name.replace(PEFT, PEFT + "model."),
        lambda name: name.replace(PEFT, PEFT + "_fsdp_wrapped_module."),
        lambda name: name.replace(PEFT, "diffusion_model."),
        lambda name: name.replace(PEFT, "diffusion_model.").replace("lora_A", "lora_down").replace("lora_B", "lora_up"),
        lambda name: name.replace(".weight", ""),
        kohya,
        lambda name: kohya(name).replace("lora_unet_", "lora_unet__"),
    ],
)
def test_every_spelling_gives_the_same_merge(base, adapter, lora, tmp_path, rename):
    other = Lora.read(saved(tmp_path, renamed(adapter, rename), "other.pt"))
    assert_same(merge(base, other)[0], merge(base, lora)[0])


@pytest.mark.parametrize("part", ["generator_lora", "model", "state_dict"])
def test_the_generators_adapter_is_taken_and_the_critics_is_not(base, adapter, lora, tmp_path, part):
    critic = {name: tensor + 1 for name, tensor in adapter.items()}
    path = saved(tmp_path, {"critic_lora": critic, part: adapter, "step": 3000}, "train.pt")
    assert_same(merge(base, Lora.read(path))[0], merge(base, lora)[0])


def test_a_critics_adapter_alone_is_refused(adapter, tmp_path):
    with pytest.raises(WeightsError, match="holds critic_lora, step; expected"):
        Lora.read(saved(tmp_path, {"critic_lora": adapter, "step": 1}))


def test_kohyas_names_reach_beyond_the_blocks(base, tmp_path):
    names = {"head_head": "head.head", "text_embedding_0": "text_embedding.0", "time_projection_1": "time_projection.1"}
    names |= {"blocks_1_ffn_2": "blocks.1.ffn.2"}
    state = {}
    for flat, module in names.items():
        outputs, inputs = base[f"{module}.weight"].shape
        state[f"lora_unet_{flat}.lora_down.weight"] = torch.randn(2, inputs)
        state[f"lora_unet_{flat}.lora_up.weight"] = torch.randn(outputs, 2)
    lora = Lora.read(saved(tmp_path, state))
    assert set(lora.pairs) == set(names.values())
    assert merge(base, lora)[1].warning == ""


def test_what_goes_to_comfyui_comes_back_the_same(base, lora, tmp_path):
    state = lora.as_comfy_state()
    assert len(state) == 60
    assert all(name.startswith("diffusion_model.blocks.") for name in state)
    assert state["diffusion_model.blocks.0.self_attn.q.alpha"].item() == 4
    assert_same(merge(base, Lora.read(saved(tmp_path, state, "comfy.safetensors")))[0], merge(base, lora)[0])


# a model with a LoRA


def test_a_model_loads_with_its_lora_merged(base, adapter, lora, tmp_path):
    path = saved(tmp_path, {"generator_lora": adapter}, "lora.pt")
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
        load_model(saved(tmp_path, adapter))
    with pytest.raises(
        WeightsError, match=r"holds Wan.* text-to-video weights; expected a LoRA for LongLive.*; download"
    ):
        Lora.read(CAUSAL)


def test_a_wider_dtype_than_the_files_keeps_the_whole_sum(base, lora, tmp_path):
    halves = {name: tensor.bfloat16() for name, tensor in base.items()}
    model, _ = load_model(saved(tmp_path, halves, "base.pt"), lora=lora, dtype=torch.float32, num_heads=2)
    expected = merge({name: tensor.float() for name, tensor in halves.items()}, lora)[0]
    assert_same(dict(model.state_dict()), expected)


def test_a_host_gets_the_merged_weights_in_the_dtypes_of_the_file(base, adapter, lora, tmp_path):
    mixed = {name: tensor if "modulation" in name else tensor.bfloat16() for name, tensor in base.items()}
    weights = read_weights_file(saved(tmp_path, {"generator": mixed}, "base.pt"))
    state, report = merge_weights(weights.stating(num_heads=2), lora=lora)
    assert_same(state, merge(mixed, lora)[0])
    assert report.dtype == torch.bfloat16
    assert not any(state[name] is weights.tensors[name] for name in state)


# what does not fit


def test_a_lora_that_fits_in_part_is_used_and_says_so(base, adapter, tmp_path):
    extra = {f"{PEFT}blocks.7.ffn.0.lora_{factor}.weight": torch.zeros(4, 4) for factor in "AB"}
    path = saved(tmp_path, adapter | extra | {f"{PEFT}blocks.0.norm3.diff": torch.zeros(4)})
    _, report = merge(base, Lora.read(path))
    assert (report.matched, report.unmatched, report.unread) == (20, ("blocks.7.ffn.0",), ("blocks.0.norm3.diff",))
    assert report.warning == (
        "lora.pt is used in part: 20 modules, without 1 modules that the model lacks (blocks.7.ffn.0) "
        "and 1 tensors of another form (blocks.0.norm3.diff)"
    )
    _, loaded = load_model(CAUSAL, lora=path)
    assert loaded.warnings == (report.warning,)
    assert str(loaded) == f"{loaded.summary}\n{report.warning}"


def test_a_lora_that_matches_nothing_is_refused(base, tmp_path):
    state = {f"blocks.9.ffn.0.lora_{factor}.weight": torch.zeros(4, 4) for factor in "AB"}
    with pytest.raises(WeightsError, match=r"matches no module of the model \(it has blocks\.9\.ffn\.0\)"):
        merge(base, Lora.read(saved(tmp_path, state)))


def test_a_lora_for_a_wider_model_is_refused(base, tmp_path):
    state = {f"blocks.0.ffn.0.lora_{factor}.weight": torch.zeros(4, 4) for factor in "AB"}
    lora = Lora.read(saved(tmp_path, state))
    with pytest.raises(
        WeightsError, match=r"made for another model: its blocks\.0\.ffn\.0 is \[4, 4\], the model's \[64, 32\]"
    ):
        merge(base, lora)


def test_factors_that_share_no_rank_are_refused(adapter, tmp_path):
    state = adapter | {f"{PEFT}blocks.0.self_attn.q.lora_A.weight": torch.zeros(5, 32)}
    with pytest.raises(
        WeightsError, match=r"factors \[5, 32\] and \[32, 4\] for blocks\.0\.self_attn\.q, which share no"
    ):
        Lora.read(saved(tmp_path, state))


def test_half_a_pair_is_refused(adapter, tmp_path):
    state = {name: tensor for name, tensor in adapter.items() if "blocks.1.ffn.2.lora_B" not in name}
    with pytest.raises(WeightsError, match=r"has one factor of two for blocks\.1\.ffn\.2; download it again"):
        Lora.read(saved(tmp_path, state))


@pytest.mark.parametrize("name", ["dora_scale", "lora_magnitude_vector", "hada_w1_a", "lokr_w1"])
def test_other_formulas_are_refused_rather_than_misread(adapter, tmp_path, name):
    state = adapter | {f"{PEFT}blocks.0.self_attn.q.{name}": torch.zeros(32)}
    with pytest.raises(WeightsError, match=rf"is not a plain LoRA \(blocks\.0\.self_attn\.q\.{name}\)"):
        Lora.read(saved(tmp_path, state))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("transformer.blocks.0.attn1.to_q", "a Wan LoRA under diffusers names"),
        ("lora_unet_double_blocks_0_img_mlp_0", "a LoRA for Flux"),
        ("lora_unet_input_blocks_1_1_proj_in", "a LoRA for SD or SDXL"),
        ("layers.3.attention.qkv", "a LoRA for another model"),
    ],
)
def test_a_lora_for_another_model_is_named(tmp_path, name, kind):
    state = {f"{name}.lora_{factor}.weight": torch.zeros(4, 4) for factor in ("down", "up")}
    with pytest.raises(WeightsError, match=f"holds {kind}; expected a LoRA for LongLive or Wan"):
        Lora.read(saved(tmp_path, state))


def test_a_lora_is_described(adapter, tmp_path):
    text = describe_file(saved(tmp_path, {"generator_lora": adapter, "critic_lora": adapter}))
    assert "  kind      a LoRA for LongLive or Wan2.1" in text
    assert "  modules   20, such as blocks.0.cross_attn.k" in text
    assert "  rank      4, alpha 4" in text


SINGLE = "blocks.0.self_attn.q"


def single(down=(2, 32), up=(32, 2), dtype=torch.float32, **more):
    """An adapter of one module."""
    factors = {f"{SINGLE}.lora_A.weight": torch.ones(down), f"{SINGLE}.lora_B.weight": torch.ones(up)}
    return {name: x.to(dtype) for name, x in factors.items()} | more


@pytest.mark.parametrize(
    ("down", "up"),
    [((0, 32), (32, 0)), ((2, 32), (32, 2, 3, 3)), ((2, 0), (32, 2)), ((2, 32), (0, 2)), ((2,), (32, 2))],
)
def test_factors_without_a_common_rank_are_refused(tmp_path, down, up):
    with pytest.raises(WeightsError, match=rf"has factors .* for {SINGLE}, which share no rank"):
        Lora.read(saved(tmp_path, single(down, up)))


@pytest.mark.parametrize("alpha", [float("nan"), float("inf"), [1.0, 2.0], [], 1j])
def test_an_alpha_that_is_no_number_is_refused(tmp_path, alpha):
    with pytest.raises(WeightsError, match=f"states an alpha for {SINGLE} that is not a number; give `alpha`"):
        Lora.read(saved(tmp_path, single(**{f"{SINGLE}.alpha": torch.tensor(alpha)})))


@pytest.mark.parametrize("alpha", ["nan", "1e400", "-inf", "x" * 10**6, ""])
def test_metadata_of_an_alpha_that_is_no_number_is_refused(tmp_path, alpha):
    path = saved(tmp_path, single(), "lora.safetensors", metadata={"alpha": alpha})
    with pytest.raises(WeightsError, match=r"states alpha '.{0,300}, which is not a number; give `alpha`"):
        Lora.read(path)


@pytest.mark.parametrize("alpha", ["[1]", "{}", '"x"'])
def test_a_peft_folder_with_an_alpha_that_is_no_number_is_refused(tmp_path, alpha):
    folder = saved(tmp_path, single(), "peft/adapter_model.safetensors").parent
    (folder / "adapter_config.json").write_text(f'{{"lora_alpha": {alpha}}}')
    with pytest.raises(WeightsError, match=r"states alpha .*, which is not a number; give `alpha`"):
        Lora.read(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("factor", ["lora_A", "lora_B"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e5m2])
def test_factors_that_are_not_finite_are_refused(tmp_path, value, factor, dtype):
    adapter = single()
    adapter[f"{SINGLE}.{factor}.weight"][0, 0] = value
    adapter = {name: x.to(dtype) for name, x in adapter.items()}
    with pytest.raises(WeightsError, match=rf"holds NaN, infinity .* in {SINGLE}"):
        Lora.read(saved(tmp_path, adapter, "lora.safetensors"))


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64])
def test_factors_that_no_network_computes_with_are_refused(tmp_path, dtype):
    with pytest.raises(WeightsError, match=f"numbers of {dtype} in {SINGLE}"):
        Lora.read(saved(tmp_path, single(dtype=dtype)))


@pytest.mark.parametrize("strength", [float("nan"), float("inf")])
def test_a_strength_that_is_no_number_is_refused(base, lora, strength):
    for given in (lora, None):
        with pytest.raises(ConfigError, match=f"the strength of the LoRA is {strength}; give a number"):
            load_model(CAUSAL, lora=given, strength=strength)


@pytest.mark.parametrize(("strength", "alpha"), [(1e39, 1.0), (1.0, 1e300)])
def test_a_merge_that_is_not_finite_is_refused_and_names_the_lora(tmp_path, strength, alpha):
    lora = Lora.read(saved(tmp_path, single()), alpha=alpha)
    with pytest.raises(WeightsError, match=rf"lora\.pt makes NaN or infinity of {SINGLE}\.weight; use a smaller"):
        load_model(CAUSAL, lora=lora, strength=strength)
