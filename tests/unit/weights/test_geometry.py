"""The sizes of a network, which a file states or its tensors show: what makes no network is refused."""

import json

import pytest
import torch
from tiny_weights import TINY, assert_harmless

from longlive.errors import WeightsError
from longlive.weights import load
from longlive.weights.load import load_model


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
def test_a_stated_size_that_no_network_has_is_refused(base, save, name, value):
    stated = {"num_heads": 2, "text_len": 8} | {name: value}
    path = save("x.safetensors", base, metadata={"geometry": json.dumps(stated)})
    with pytest.raises(WeightsError, match=r"^x\.safetensors has sizes that no Wan2\.1 network has: .*; download"):
        load_model(path)


@pytest.mark.parametrize("value", ["x" * 10**6, None, [[]], {"a": 5}, "\x1b[2J"])
def test_senseless_sizes_are_refused_in_a_short_sentence(base, save, value):
    stated = {"num_heads": 2, "text_len": 8, "ffn_dim": value}
    with pytest.raises(WeightsError, match=r"states ffn_dim .* but has 64") as caught:
        load_model(save("x.safetensors", base, metadata={"geometry": json.dumps(stated)}))
    assert_harmless(caught.value)


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
