"""A LoRA that does not fit the model, or holds what is not a finite number, is refused or named."""

import pytest
import torch
from tiny_loras import PEFT, merge, save_tensors
from tiny_weights import CAUSAL

from longlive.errors import ConfigError, WeightsError
from longlive.weights.load import load_model
from longlive.weights.lora import Lora


def test_a_lora_that_fits_in_part_is_used_and_says_so(base, adapter, tmp_path):
    extra = {f"{PEFT}blocks.7.ffn.0.lora_{factor}.weight": torch.zeros(4, 4) for factor in "AB"}
    path = save_tensors(tmp_path, adapter | extra | {f"{PEFT}blocks.0.norm3.diff": torch.zeros(4)})
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
        merge(base, Lora.read(save_tensors(tmp_path, state)))


def test_a_lora_for_a_wider_model_is_refused(base, tmp_path):
    state = {f"blocks.0.ffn.0.lora_{factor}.weight": torch.zeros(4, 4) for factor in "AB"}
    lora = Lora.read(save_tensors(tmp_path, state))
    with pytest.raises(
        WeightsError, match=r"made for another model: its blocks\.0\.ffn\.0 is \[4, 4\], the model's \[64, 32\]"
    ):
        merge(base, lora)


def test_factors_that_share_no_rank_are_refused(adapter, tmp_path):
    state = adapter | {f"{PEFT}blocks.0.self_attn.q.lora_A.weight": torch.zeros(5, 32)}
    with pytest.raises(
        WeightsError, match=r"factors \[5, 32\] and \[32, 4\] for blocks\.0\.self_attn\.q, which share no"
    ):
        Lora.read(save_tensors(tmp_path, state))


def test_half_a_pair_is_refused(adapter, tmp_path):
    state = {name: tensor for name, tensor in adapter.items() if "blocks.1.ffn.2.lora_B" not in name}
    with pytest.raises(WeightsError, match=r"has one factor of two for blocks\.1\.ffn\.2; download it again"):
        Lora.read(save_tensors(tmp_path, state))


@pytest.mark.parametrize("name", ["dora_scale", "lora_magnitude_vector", "hada_w1_a", "lokr_w1"])
def test_other_formulas_are_refused_rather_than_misread(adapter, tmp_path, name):
    state = adapter | {f"{PEFT}blocks.0.self_attn.q.{name}": torch.zeros(32)}
    with pytest.raises(WeightsError, match=rf"is not a plain LoRA \(blocks\.0\.self_attn\.q\.{name}\)"):
        Lora.read(save_tensors(tmp_path, state))


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
        Lora.read(save_tensors(tmp_path, state))


SINGLE = "blocks.0.self_attn.q"


def make_adapter(down=(2, 32), up=(32, 2), dtype=torch.float32, **more):
    """Make an adapter of one module."""
    factors = {f"{SINGLE}.lora_A.weight": torch.ones(down), f"{SINGLE}.lora_B.weight": torch.ones(up)}
    return {name: x.to(dtype) for name, x in factors.items()} | more


@pytest.mark.parametrize(
    ("down", "up"),
    [((0, 32), (32, 0)), ((2, 32), (32, 2, 3, 3)), ((2, 0), (32, 2)), ((2, 32), (0, 2)), ((2,), (32, 2))],
)
def test_factors_without_a_common_rank_are_refused(tmp_path, down, up):
    with pytest.raises(WeightsError, match=rf"has factors .* for {SINGLE}, which share no rank"):
        Lora.read(save_tensors(tmp_path, make_adapter(down, up)))


@pytest.mark.parametrize("alpha", [float("nan"), float("inf"), [1.0, 2.0], [], 1j])
def test_an_alpha_that_is_not_a_number_is_refused(tmp_path, alpha):
    with pytest.raises(WeightsError, match=f"states an alpha for {SINGLE} that is not a number; give `alpha`"):
        Lora.read(save_tensors(tmp_path, make_adapter(**{f"{SINGLE}.alpha": torch.tensor(alpha)})))


@pytest.mark.parametrize("alpha", ["nan", "1e400", "-inf", "x" * 10**6, ""])
def test_an_alpha_in_metadata_that_is_not_a_number_is_refused(tmp_path, alpha):
    path = save_tensors(tmp_path, make_adapter(), "lora.safetensors", metadata={"alpha": alpha})
    with pytest.raises(WeightsError, match=r"states alpha '.{0,300}, which is not a number; give `alpha`"):
        Lora.read(path)


@pytest.mark.parametrize("alpha", ["[1]", "{}", '"x"'])
def test_a_peft_folder_with_an_alpha_that_is_not_a_number_is_refused(tmp_path, alpha):
    folder = save_tensors(tmp_path, make_adapter(), "peft/adapter_model.safetensors").parent
    (folder / "adapter_config.json").write_text(f'{{"lora_alpha": {alpha}}}')
    with pytest.raises(WeightsError, match=r"states alpha .*, which is not a number; give `alpha`"):
        Lora.read(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("factor", ["lora_A", "lora_B"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e5m2])
def test_factors_that_are_not_finite_are_refused(tmp_path, value, factor, dtype):
    adapter = make_adapter()
    adapter[f"{SINGLE}.{factor}.weight"][0, 0] = value
    adapter = {name: x.to(dtype) for name, x in adapter.items()}
    with pytest.raises(WeightsError, match=rf"holds NaN, infinity .* in {SINGLE}"):
        Lora.read(save_tensors(tmp_path, adapter, "lora.safetensors"))


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64])
def test_factors_that_no_network_computes_with_are_refused(tmp_path, dtype):
    with pytest.raises(WeightsError, match=f"numbers of {dtype} in {SINGLE}"):
        Lora.read(save_tensors(tmp_path, make_adapter(dtype=dtype)))


@pytest.mark.parametrize("strength", [float("nan"), float("inf")])
def test_a_strength_that_is_not_finite_is_refused(base, lora, strength):
    for given in (lora, None):
        with pytest.raises(ConfigError, match=f"the strength of the LoRA is {strength}; give a number"):
            load_model(CAUSAL, lora=given, strength=strength)


@pytest.mark.parametrize(("strength", "alpha"), [(1e39, 1.0), (1.0, 1e300)])
def test_a_merge_that_is_not_finite_is_refused_and_names_the_lora(tmp_path, strength, alpha):
    lora = Lora.read(save_tensors(tmp_path, make_adapter()), alpha=alpha)
    with pytest.raises(WeightsError, match=rf"lora\.pt makes NaN or infinity of {SINGLE}\.weight; use a smaller"):
        load_model(CAUSAL, lora=lora, strength=strength)
