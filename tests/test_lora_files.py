"""Motion LoRA files of every trainer: how layers are called, and how strong a LoRA is by itself."""

import json
import re

import pytest
import torch
from animatediff_lightning.motion_module import lora, lora_keys
from animatediff_lightning.motion_module.content import CheckpointError
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

LAYER = (
    "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.0"
)
DIFFUSERS_LAYER = "down_blocks.0.motion_modules.0.transformer_blocks.0.attn1"
WEIGHTS = {name: f"{LAYER}.{name}.weight" for name in ("to_q", "to_out.0")}
RANK = 4


def pair() -> dict[str, torch.Tensor]:
    """Return the two halves of a LoRA for a weight of 32 x 32."""
    generator = torch.Generator().manual_seed(0)
    return {
        "down": torch.randn(RANK, 32, generator=generator),
        "up": torch.randn(32, RANK, generator=generator),
    }


def saved(folder, tensors, metadata=None, name="lora.safetensors"):
    save_file(tensors, folder / name, metadata=metadata)
    return folder / name


# ---- names -------------------------------------------------------------------------------------

# by trainer: the keys of to_q's and to_out's lower half; the upper one has up or B in it
NAMES = {
    "AnimateDiff": (
        f"{LAYER}.processor.to_q_lora.down.weight",
        f"{LAYER}.processor.to_out_lora.down.weight",
    ),
    "AnimateDiff-MotionDirector, as motion LoRA": (
        f"{LAYER}.processor.to_q_lora.down.weight",
        f"{LAYER}.to_out.processor.0_lora.down.weight",
    ),
    "AnimateDiff-MotionDirector": (
        f"{LAYER}.to_q.lora_down.weight",
        f"{LAYER}.to_out.0.lora_down.weight",
    ),
    "diffusers' conversion": (
        f"unet.{DIFFUSERS_LAYER}.processor.to_q_lora.down.weight",
        f"unet.{DIFFUSERS_LAYER}.processor.to_out_lora.down.weight",
    ),
    "diffusers before PEFT": (
        f"unet.{DIFFUSERS_LAYER}.to_q.lora_linear_layer.down.weight",
        f"unet.{DIFFUSERS_LAYER}.to_out.0.lora_linear_layer.down.weight",
    ),
    "diffusers": (
        f"unet.{DIFFUSERS_LAYER}.to_q.lora_A.weight",
        f"unet.{DIFFUSERS_LAYER}.to_out.0.lora_A.weight",
    ),
    "diffusers, lora.down": (
        f"unet.{DIFFUSERS_LAYER}.to_q.lora.down.weight",
        f"unet.{DIFFUSERS_LAYER}.to_out.0.lora.down.weight",
    ),
    "PEFT": (
        f"base_model.model.{DIFFUSERS_LAYER}.to_q.lora_A.weight",
        f"base_model.model.{DIFFUSERS_LAYER}.to_out.0.lora_A.weight",
    ),
    "PEFT in a pipeline": (
        f"base_model.model.unet.{DIFFUSERS_LAYER}.to_q.lora_A.weight",
        f"base_model.model.unet.{DIFFUSERS_LAYER}.to_out.0.lora_A.weight",
    ),
    "PEFT's state dict": (
        f"{DIFFUSERS_LAYER}.to_q.lora_A.default.weight",
        f"{DIFFUSERS_LAYER}.to_out.0.lora_A.default.weight",
    ),
    "PEFT, named adapter": (
        f"base_model.model.{DIFFUSERS_LAYER}.to_q.lora_A.zoom-in.weight",
        f"base_model.model.{DIFFUSERS_LAYER}.to_out.0.lora_A.zoom-in.weight",
    ),
    "ComfyUI": (
        f"diffusion_model.{LAYER}.to_q.lora_down.weight",
        f"diffusion_model.{LAYER}.to_out.0.lora_down.weight",
    ),
    "DistributedDataParallel": (
        f"module.unet.{LAYER}.to_q.lora_A.weight",
        f"module.unet.{LAYER}.to_out.0.lora_A.weight",
    ),
    "torch.compile": (
        f"unet._orig_mod.{LAYER}.to_q.lora_A.weight",
        f"unet._orig_mod.{LAYER}.to_out.0.lora_A.weight",
    ),
    "kohya, AnimateDiff's layers": (
        f"lora_unet_{LAYER.replace('.', '_')}_to_q.lora_down.weight",
        f"lora_unet_{LAYER.replace('.', '_')}_to_out_0.lora_down.weight",
    ),
    "kohya, diffusers' layers": (
        f"lora_unet_{DIFFUSERS_LAYER.replace('.', '_')}_to_q.lora_down.weight",
        f"lora_unet_{DIFFUSERS_LAYER.replace('.', '_')}_to_out_0.lora_down.weight",
    ),
}


def upper(key: str) -> str:
    """Return the key of the upper half."""
    if "lora_A" in key:
        return key.replace("lora_A", "lora_B")
    return re.sub(r"([._])down\.weight$", r"\1up.weight", key)


@pytest.mark.parametrize("trainer", NAMES)
def test_every_trainers_names_are_those_of_the_motion_module(tmp_path, trainer):
    query, out = NAMES[trainer]
    halves = pair()
    tensors = {query: halves["down"], upper(query): halves["up"]}
    tensors |= {out: halves["down"] * 2, upper(out): halves["up"] * 2}
    loaded = lora.load(saved(tmp_path, tensors))
    assert loaded.pairs.keys() == set(WEIGHTS.values())
    assert torch.equal(loaded.pairs[WEIGHTS["to_q"]].down, halves["down"])
    assert torch.equal(loaded.pairs[WEIGHTS["to_out.0"]].up, halves["up"] * 2)


@pytest.mark.parametrize(
    ("layer", "weight"),
    [
        ("mid_block.motion_modules.0.transformer_blocks.0.attn2.to_v", "attention_blocks.1.to_v"),
        ("mid_block.motion_modules.0.transformer_blocks.0.ff.net.0.proj", "ff.net.0.proj"),
        ("mid_block.motion_modules.0.transformer_blocks.0.ff.net.2", "ff.net.2"),
        ("mid_block.motion_modules.0.proj_in", None),
    ],
)
def test_other_layers_and_the_mid_block(layer, weight):
    start = "mid_block.motion_modules.0.temporal_transformer."
    block = f"{start}transformer_blocks.0.{weight}.weight"
    expected = f"{start}proj_in.weight" if weight is None else block
    for name in (layer, f"unet.{layer}", "lora_unet_" + layer.replace(".", "_")):
        assert lora_keys.parse(f"{name}.lora_down.weight").weight == expected


def test_layers_of_the_image_model_are_counted_and_left_out(tmp_path):
    image = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    text = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
    halves = pair()
    tensors = {
        f"{layer}.lora_{half}.weight": tensor.clone()
        for layer in (image, text, f"unet.{DIFFUSERS_LAYER}.to_q")
        for half, tensor in (("A", halves["down"]), ("B", halves["up"]))
    }
    loaded = lora.load(saved(tmp_path, tensors))
    assert list(loaded.pairs) == [WEIGHTS["to_q"]]
    assert loaded.for_image_model == 2


@settings(derandomize=True, deadline=None)
@given(st.text(max_size=80))
def test_any_name_is_parsed_without_an_exception(name):
    for key in (name, f"{LAYER}.{name}", f"{name}.lora_A.weight", f"lora_unet_{name}.alpha"):
        part = lora_keys.parse(key)
        lora_keys.other_method(key)
        assert part is None or part.weight is None or part.weight.endswith(".weight")


@settings(derandomize=True, deadline=None)
@given(
    st.lists(st.sampled_from(["module", "unet", "model", "diffusion_model", "x"]), max_size=4),
    st.sampled_from(["to_q", "to_k", "to_v", "to_out.0", "ff"]),
)
def test_whatever_stands_before_a_name_does_not_change_it(words, layer):
    prefix = "".join(f"{word}." for word in words)
    plain = lora_keys.parse(f"{LAYER}.{layer}.lora_A.weight")
    assert lora_keys.parse(f"{prefix}{LAYER}.{layer}.lora_A.weight").weight == plain.weight


# ---- strength ----------------------------------------------------------------------------------


def one_layer(alpha: float | None = None) -> dict[str, torch.Tensor]:
    key = f"unet.{DIFFUSERS_LAYER}.to_q"
    tensors = {f"{key}.lora_A.weight": pair()["down"], f"{key}.lora_B.weight": pair()["up"]}
    return tensors if alpha is None else tensors | {f"{key}.alpha": torch.tensor(alpha)}


def packed(**fields: object) -> dict[str, str]:
    """Return PEFT's config as diffusers writes it into a file's header."""
    return {"lora_adapter_metadata": json.dumps({f"unet.{k}": v for k, v in fields.items()})}


@pytest.mark.parametrize(
    ("alpha", "metadata", "scale"),
    [
        (None, None, 1.0),
        (None, {"format": "pt"}, 1.0),
        (1.0, None, 0.25),
        (8.0, None, 2.0),
        (None, packed(r=4, lora_alpha=1), 0.25),
        (None, {"lora_adapter_metadata": '{"r": 4, "lora_alpha": 1}'}, 0.25),
        (None, packed(r=4, lora_alpha=1, use_rslora=True), 0.5),
        (None, packed(r=4, lora_alpha=1, alpha_pattern={"attn1.to_q": 2}), 0.5),
        (None, packed(r=4, lora_alpha=1, alpha_pattern={"attn2.to_q": 2}), 0.25),
        (None, packed(r=4, lora_alpha=1, alpha_pattern={"o_q": 2}), 0.25),
        # a layer of another rank than most has the rank of its tensors
        (None, packed(r=8, lora_alpha=8, rank_pattern={"to_q": 4}), 2.0),
        # the tensor tells of the weights that it lies with
        (2.0, packed(r=4, lora_alpha=1), 0.5),
        (None, packed(r=4), 1.0),
    ],
)
def test_a_lora_is_as_strong_as_its_file_says(tmp_path, alpha, metadata, scale):
    loaded = lora.load(saved(tmp_path, one_layer(alpha), metadata))
    assert loaded.pairs[WEIGHTS["to_q"]].scale == pytest.approx(scale)


@pytest.mark.parametrize("key", ["to_q.alpha", "processor.to_q_lora.alpha", "to_q.lora.alpha"])
def test_alpha_is_read_under_every_name(tmp_path, key):
    tensors = one_layer() | {f"unet.{DIFFUSERS_LAYER}.{key}": torch.tensor(1.0)}
    assert lora.load(saved(tmp_path, tensors)).pairs[WEIGHTS["to_q"]].scale == 0.25


def test_pefts_config_beside_its_file_is_read(tmp_path):
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 1, "alpha_pattern": {}})
    )
    beside = lora.load(saved(tmp_path, one_layer(), name="adapter_model.safetensors"))
    assert beside.pairs[WEIGHTS["to_q"]].scale == 0.25
    # it is not about a file with a name of its own
    other = lora.load(saved(tmp_path, one_layer(), name="zoom.safetensors"))
    assert other.pairs[WEIGHTS["to_q"]].scale == 1


@pytest.mark.parametrize(
    ("metadata", "phrase"),
    [
        (packed(r=4, lora_alpha="high"), "says lora_alpha = 'high', from which its strength"),
        (packed(r=4, lora_alpha=True), "says lora_alpha = True, from which its strength"),
        (packed(alpha_pattern={".*to_q": 2}), "says alpha_pattern = '.*to_q', from which its"),
        (packed(alpha_pattern=[1]), "says alpha_pattern = [1], from which its strength"),
        (packed(use_dora=True), "is a DoRA, which is not supported; use a plain LoRA"),
        ({"lora_adapter_metadata": "{"}, "says lora_adapter_metadata = '{', from which its"),
        ({"lora_adapter_metadata": "[]"}, "says lora_adapter_metadata = '[]', from which its"),
    ],
)
def test_a_strength_that_cannot_be_read_is_refused(tmp_path, metadata, phrase):
    with pytest.raises(CheckpointError) as raised:
        lora.load(saved(tmp_path, one_layer(), metadata))
    assert phrase in str(raised.value)
    assert str(raised.value).startswith("lora.safetensors ")


def test_the_strength_by_itself_reaches_the_weights(tmp_path, thin_config, random_module):
    module = random_module(thin_config())
    before = module.state_dict()[WEIGHTS["to_q"]].clone()
    loaded = lora.load(saved(tmp_path, one_layer(alpha=1.0)))
    merged = lora.merge(module, [(loaded, 0.5)])
    expected = before + 0.5 * 0.25 * pair()["up"] @ pair()["down"]
    assert torch.allclose(module.state_dict()[WEIGHTS["to_q"]], expected, atol=1e-6)
    merged.unmerge()
    assert torch.equal(module.state_dict()[WEIGHTS["to_q"]], before)
