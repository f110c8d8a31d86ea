"""The description of a file that `longlive info` prints."""

import pytest
from tiny_weights import CAUSAL, add_prefix, make_tensors

from longlive.errors import WeightsError
from longlive.weights.describe import describe_file


@pytest.mark.parametrize("config", ['{"transformer": 5}', '{"transformer": null}', '{"transformer": []}'])
def test_metadata_of_another_form_says_nothing(base, save, config):
    path = save("x.safetensors", base, metadata={"config": config, "geometry": '{"num_heads": 2, "_class_name": 5}'})
    assert "trained   not stated" in describe_file(path)


def test_a_training_checkpoint_is_described(base, save):
    path = save("long.pt", {"generator": add_prefix(base, "model."), "critic": {}, "step": 3})
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
    tensors = make_tensors("encoder.downsamples.0.residual.0.gamma", **{"decoder.head.2.weight": (3, 96, 3, 3, 3)})
    assert "  width     96" in describe_file(save("vae.pt", tensors))
    text = describe_file(save("x.safetensors", make_tensors(*"abcdefgh")))
    assert "weights of an unknown model" in text
    assert "  names     a, b, c, d, e, f and 2 more" in text


def test_a_vae_of_an_odd_shape_is_described_without_its_width(save):
    tensors = make_tensors("encoder.downsamples.0.residual.0.gamma", **{"decoder.head.2.weight": (3,)})
    text = describe_file(save("vae.pt", tensors))
    assert "kind      a Wan2.1 VAE" in text
    assert "width" not in text


def test_a_lora_without_a_pair_of_factors_is_refused(save):
    path = save("lora.pt", make_tensors("blocks.0.self_attn.q.lora_C.weight"))
    with pytest.raises(WeightsError, match=r"lora\.pt has no pair of factors, but .*lora_C\.weight; download it again"):
        describe_file(path)


@pytest.mark.parametrize(
    ("metadata", "trained"),
    [({"config": '{"transformer": {"causal_ar": true}}'}, "causal"), ({"config": "{}"}, "not stated")],
)
def test_metadata_of_the_host_says_whether_weights_are_causal(base, save, metadata, trained):
    assert f"trained   {trained}" in describe_file(
        save("x.safetensors", base, metadata=metadata | {"geometry": '{"num_heads": 2}'})
    )
