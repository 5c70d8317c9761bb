"""Every known neighbour of a motion module is named for what it is, and no rule hides another."""

import json

import pytest
import torch
from animatediff_lightning.motion_module import checkpoint, kinds, recognise
from animatediff_lightning.motion_module.content import CheckpointError
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

MOTION = "down_blocks.0.motion_modules.0.temporal_transformer."
ATTENTION = f"{MOTION}transformer_blocks.0.attention_blocks.0."
MOTION_MODULE = (f"{MOTION}norm.weight", f"{ATTENTION}to_q.weight", "mid_block.motion_modules.0.x")
UNET = (
    "conv_in.weight",
    "down_blocks.0.resnets.0.conv1.weight",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight",
    "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight",
)
IMAGE_LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
LDM = (
    "model.diffusion_model.input_blocks.0.0.weight",
    "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight",
    "first_stage_model.encoder.conv_in.weight",
    "first_stage_model.decoder.mid.block_1.conv1.weight",
)

# by the name of the kind: keys of such files, as their authors publish them
SAMPLES: dict[str, list[tuple[str, ...]]] = {
    "a CameraCtrl model": [
        (
            "pose_encoder_state_dict.encoder_conv_in.weight",
            f"attention_processor_state_dict.{ATTENTION}processor.qkv_merge.weight",
        ),
        ("encoder_down_conv_blocks.0.0.in_conv.weight", f"{ATTENTION}processor.qkv_merge.weight"),
    ],
    "a MotionCtrl model": [(f"{MOTION}transformer_blocks.0.cc_projection.weight",)],
    "an AnimateLCM-I2V model": [(*MOTION_MODULE, "img_encoder.body.0.block1.weight")],
    "a FancyVideo model": [(*MOTION_MODULE, "conv_in.weight", "fps_embedding.linear.weight")],
    "a SparseCtrl ControlNet": [
        (*MOTION_MODULE, *UNET, "controlnet_cond_embedding.conv_in.weight"),
        (*MOTION_MODULE, *UNET, "controlnet_cond_embedding.weight", "controlnet_mid_block.weight"),
    ],
    "a HotShot-XL motion module": [
        (
            "down_blocks.0.temporal_attentions.0.transformer_blocks.0.attention_blocks.0."
            "pos_encoder.positional_encoding",
        ),
    ],
    "a motion LoRA": [
        (f"{ATTENTION}processor.to_q_lora.down.weight",),
        (f"unet.{MOTION}x.lora_A.weight", f"unet.{IMAGE_LAYER}.to_q.lora_A.weight"),
        ("lora_unet_down_blocks_0_motion_modules_0_proj_in.lora_down.weight",),
        (f"{ATTENTION}to_q.hada_w1_a",),
    ],
    "a whole UNet with a motion module inside": [(*MOTION_MODULE, *UNET)],
    "a PIA motion module, which replaces the base model's first convolution": [
        (*MOTION_MODULE, "conv_in.weight", "conv_in.bias"),
    ],
    "an AnimateDiff-SDXL motion module": [],  # told by its shapes, see below
    "an AnimateDiff v1 motion module (24 positions, no mid block)": [],
    "a motion module": [MOTION_MODULE, ("down_blocks.0.motion_modules.0.norm.weight",)],
    "a LoRA for the image model in AnimateDiff's spelling, such as v3's domain adapter": [
        (f"{IMAGE_LAYER}.processor.to_q_lora.down.weight",),
    ],
    "a LoRA for another model than SD1.5": [
        ("diffusion_model.blocks.0.self_attn.q.lora_A.weight",),
        ("transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight",),
        ("lora_unet_double_blocks_0_img_attn_proj.lora_down.weight",),
    ],
    "a LoRA with numbers in the place of layer names (cloneofsimo's format)": [
        ("unet:0:up", "unet:0:down"),
    ],
    "a LoRA for the image model": [
        ("lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight",),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight",),
        (f"unet.{IMAGE_LAYER}.to_q.lora_A.weight",),
        ("lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.hada_w1_a",),
    ],
    "an IP-Adapter": [
        ("image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"),
        ("image_proj", "ip_adapter"),
    ],
    "a T2I-Adapter": [("body.0.block1.weight", "conv_in.weight"), ("adapter.body.0.in_conv.bias",)],
    "a ControlNet": [
        (*UNET, "controlnet_cond_embedding.conv_in.weight", "controlnet_down_blocks.0.weight"),
        ("control_model.input_blocks.0.0.weight", "control_model.zero_convs.0.0.weight"),
        ("input_blocks.0.0.weight", "input_hint_block.0.weight"),
    ],
    "a textual inversion embedding": [
        ("emb_params",),
        ("string_to_param.*",),
        ("clip_l", "clip_g"),
    ],
    "a Stable Video Diffusion checkpoint": [
        (*LDM, "model.diffusion_model.input_blocks.1.1.time_stack.0.attn1.to_q.weight"),
        (*UNET, "down_blocks.0.attentions.0.temporal_transformer_blocks.0.attn1.to_q.weight"),
    ],
    "an SDXL checkpoint": [(*LDM, "conditioner.embedders.0.transformer.text_model.x")],
    "a Stable Diffusion 2 checkpoint": [(*LDM, "cond_stage_model.model.token_embedding.weight")],
    "a Stable Diffusion checkpoint": [
        (*LDM, "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight"),
    ],
    "an image UNet without motion": [UNET, LDM, LDM[:2], ("input_blocks.0.0.weight",)],
    "a tiny VAE for previews (TAESD)": [
        ("3.conv.0.weight", "1.weight"),
        ("decoder.layers.3.conv.0.weight",),
        ("taesd_decoder.3.conv.0.weight",),
    ],
    "a VAE": [
        ("encoder.conv_in.weight", "encoder.mid_block.resnets.0.conv1.weight"),
        ("encoder.conv_in.weight", "decoder.mid.block_1.conv1.weight"),
        LDM[2:],
    ],
    "a CLIP vision model": [("vision_model.encoder.layers.0.mlp.fc1.weight",)],
    "a CLIP model": [("text_model.encoder.layers.0.mlp.fc1.weight",)],
}


def of_shape(*shapes: tuple[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    return {key: torch.empty(shape, device="meta") for key, shape in shapes}


def norms(widths: tuple[int, ...], prefix: str = "down_blocks") -> list:
    name = "motion_modules.0.temporal_transformer.norm.weight"
    return [(f"{prefix}.{i}.{name}", (c,)) for i, c in enumerate(widths)]


SHAPED = {
    "an AnimateDiff-SDXL motion module": of_shape(*norms((320, 640, 1280))),
    "an AnimateDiff v1 motion module (24 positions, no mid block)": of_shape(
        *norms((320, 640, 1280, 1280)), (f"{ATTENTION}pos_encoder.pe", (1, 24, 320))
    ),
    "a motion module": of_shape(
        *norms((320, 640, 1280, 1280)), (f"{ATTENTION}pos_encoder.pe", (1, 32, 320))
    ),
}


def test_every_kind_has_a_sample():
    assert [kind.name for kind in kinds.KINDS] == list(SAMPLES)
    assert all(SAMPLES[name] or name in SHAPED for name in SAMPLES)


@pytest.mark.parametrize("name", SAMPLES)
def test_no_rule_hides_another(name):
    """Each sample is of its own kind, whichever more general rules fit it too."""
    for sample in SAMPLES[name]:
        assert recognise.identify(dict.fromkeys(sample)).name == name, sample
    if name in SHAPED:
        assert recognise.identify(SHAPED[name]).name == name


def test_the_order_matters():
    """Or the table above would not need to be one from the special to the general."""
    first = next(kind for kind in kinds.KINDS if kind.name == "a motion module")
    sparse = dict.fromkeys(SAMPLES["a SparseCtrl ControlNet"][0])
    assert first.fits(sparse)
    assert recognise.identify(sparse) is not first


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("wanted", ["motion module", "motion LoRA"])
def test_a_refusal_says_what_it_is_and_where_it_belongs(name, wanted):
    sample = SHAPED.get(name) or dict.fromkeys(SAMPLES[name][0])
    refusal = recognise.refuse_other(sample, wanted)
    if name == f"a {wanted}":
        assert refusal is None
        return
    assert refusal.startswith(f"is {name}")
    advice = refusal.partition("; ")[2]
    assert advice.startswith(
        ("put it", "load it", "use ", "it needs", "it makes", "save", "export")
    )


KEYS = st.one_of(
    st.text(max_size=60),
    st.sampled_from(sorted({k for v in SAMPLES.values() for s in v for k in s})),
)


@settings(derandomize=True, deadline=None)
@given(st.sets(KEYS, max_size=12), st.sampled_from(["motion module", "motion LoRA"]))
def test_any_keys_get_one_answer_and_a_sentence(keys, wanted):
    refusal = recognise.refuse_other(dict.fromkeys(keys), wanted)
    kind = recognise.identify(dict.fromkeys(keys))
    assert (refusal is None) == (kind is not None and kind.name == f"a {wanted}")
    assert kind is None or kind.fits(dict.fromkeys(keys))


# ---- files -------------------------------------------------------------------------------------


def test_a_part_of_a_diffusers_pipeline_is_named(tmp_path):
    folder = tmp_path / "my-model" / "unet"
    folder.mkdir(parents=True)
    (folder.parent / "model_index.json").write_text(json.dumps({"unet": ["diffusers", "x"]}))
    file = folder / "diffusion_pytorch_model.safetensors"
    save_file({key: torch.zeros(1) for key in UNET}, file)
    with pytest.raises(CheckpointError) as raised:
        checkpoint.load(file)
    assert str(raised.value) == (
        "diffusion_pytorch_model.safetensors is the unet of the diffusers pipeline my-model, not a "
        "motion module; use the whole folder my-model as the base model."
    )


@pytest.mark.parametrize("name", ["m.safetensors", "m.sft", "m.ckpt", "m.pth", "m.pt", "m.bin"])
@pytest.mark.parametrize(
    ("content", "phrase"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "is a Git LFS poi"),
        (b"<!DOCTYPE html>\n<html><head></head></html>", "is a saved web page and not a weights f"),
        (b"\xef\xbb\xbf\r\n  <html lang=en>", "is a saved web page and not a weights file; downlo"),
        (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "is a saved web page and not a weig"),
        (b'{"error":"Unauthorized","message":"log in"}', "is a text in JSON, such as a server's r"),
        (b"", "is empty; download it again"),
    ],
)
def test_what_is_saved_in_the_place_of_weights_is_named(tmp_path, name, content, phrase):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError) as raised:
        checkpoint.load(tmp_path / name)
    assert str(raised.value).startswith(f"{name} {phrase}")


class _Callback:
    """Stands for pytorch-lightning's in the test's own pickle."""


@pytest.mark.parametrize("zipped", [True, False])
def test_a_callback_of_pytorch_lightning_is_harmless(tmp_path, random_module, thin_config, zipped):
    module = random_module(thin_config(max_frames=32, num_heads=8, norm_groups=32))
    path = tmp_path / "m.ckpt"
    name = "pytorch_lightning.callbacks.model_checkpoint\nModelCheckpoint\n"
    content = {"state_dict": module.state_dict(), "callbacks": [_Callback]}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    _rename_class(path, name.encode())
    assert checkpoint.load(path).state_dict.keys() == module.state_dict().keys()


def _rename_class(path, name: bytes) -> None:
    """Put another class's name into a pickle, stored as such or within an archive."""
    import io
    import zipfile

    own = f"{_Callback.__module__}\n{_Callback.__qualname__}\n".encode()
    raw = path.read_bytes()
    if not zipfile.is_zipfile(path):
        assert own in raw
        path.write_bytes(raw.replace(own, name))
        return
    out = io.BytesIO()
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(out, "w") as target:
        for entry in source.namelist():
            target.writestr(entry, source.read(entry).replace(own, name))
    path.write_bytes(out.getvalue())


@pytest.mark.parametrize("kind", ["pickle named safetensors", "safetensors named pickle"])
def test_the_content_tells_the_format_and_not_the_name(tmp_path, random_module, thin_config, kind):
    module = random_module(thin_config(max_frames=32, num_heads=8, norm_groups=32))
    path = tmp_path / ("m.safetensors" if kind.endswith("safetensors") else "m.ckpt")
    if kind.startswith("pickle"):
        torch.save(module.state_dict(), path)
    else:
        save_file(module.state_dict(), path)
    assert checkpoint.load(path).state_dict.keys() == module.state_dict().keys()


@pytest.mark.parametrize("layout", ["comfyui", "diffusers"])
@pytest.mark.parametrize("prefix", ["unet.", "model.diffusion_model.", "module.unet.", "x.y."])
def test_what_stands_before_the_keys_is_taken_off(
    tmp_path, random_module, thin_config, layout, prefix
):
    module = random_module(thin_config(max_frames=32, num_heads=8, norm_groups=32))
    plain = checkpoint.save(module, tmp_path / "plain.safetensors", layout)
    loaded = checkpoint.load(plain)
    from safetensors.torch import load_file

    save_file(
        {prefix + k: t for k, t in load_file(plain).items()}, tmp_path / "prefixed.safetensors"
    )
    other = checkpoint.load(tmp_path / "prefixed.safetensors")
    assert other.config == loaded.config
    assert other.layout == layout
    assert all(torch.equal(t, other.state_dict[k]) for k, t in loaded.state_dict.items())


def test_two_motion_modules_in_one_file_are_refused(tmp_path):
    tensors = {f"{p}.{MOTION}norm.weight": torch.ones(32) for p in ("unet", "ema")}
    save_file(tensors, tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match=r"holds several .* begin with 'ema\.' and 'unet\.'"):
        checkpoint.load(tmp_path / "m.safetensors")


# ---- what lies beside a file -------------------------------------------------------------------


def adapter_config(config, **others) -> str:
    return json.dumps(
        {
            "_class_name": "MotionAdapter",
            "block_out_channels": sorted(set(config.addresses().values())),
            "use_motion_mid_block": bool(config.mid_block),
            "motion_num_attention_heads": config.num_heads,
            "motion_norm_num_groups": config.norm_groups,
            "motion_max_seq_length": config.max_frames,
        }
        | others
    )


@pytest.mark.parametrize("layout", ["comfyui", "diffusers"])
@pytest.mark.parametrize("name", ["config.json", "m.json"])
def test_a_config_beside_a_file_tells_heads_and_groups(
    tmp_path, random_module, thin_config, layout, name
):
    config = thin_config(max_frames=48, num_heads=4, norm_groups=16)
    file = save_bare(tmp_path / "m.safetensors", random_module(config), layout)
    assert checkpoint.load(file).config.num_heads == 8
    (tmp_path / name).write_text(adapter_config(config))
    loaded = checkpoint.load(file).config
    assert (loaded.num_heads, loaded.norm_groups, loaded.max_frames) == (4, 16, 48)


def save_bare(path, module, layout="comfyui", without_positions=False):
    """Write a file that tells nothing of itself."""
    from animatediff_lightning.motion_module import keys

    tensors = dict(module.state_dict())
    if layout == "diffusers":
        tensors = keys.to_diffusers(tensors)
    if without_positions:
        tensors = {k: t for k, t in tensors.items() if "pos_encoder" not in k}
    save_file(tensors, path)
    return path


def test_a_config_tells_the_positions_that_a_file_lacks(tmp_path, random_module, thin_config):
    config = thin_config(max_frames=48, num_heads=8, norm_groups=32)
    file = save_bare(tmp_path / "m.safetensors", random_module(config), without_positions=True)
    assert checkpoint.load(file).config.max_frames == 64
    (tmp_path / "config.json").write_text(adapter_config(config))
    assert checkpoint.load(file).config.max_frames == 48


@pytest.mark.parametrize(
    "others",
    [
        {"block_out_channels": [320, 640]},
        {"use_motion_mid_block": False},
        {"_class_name": "UNet2DConditionModel"},
    ],
)
def test_a_config_of_another_model_is_left_alone(tmp_path, random_module, thin_config, others):
    config = thin_config(max_frames=32, num_heads=4, norm_groups=16)
    file = save_bare(tmp_path / "m.safetensors", random_module(config))
    (tmp_path / "config.json").write_text(adapter_config(config, **others))
    (tmp_path / "m.json").write_text('["a note of some other tool"]')
    assert checkpoint.load(file).config.num_heads == 8


def test_what_the_file_says_wins(tmp_path, random_module, thin_config):
    config = thin_config(max_frames=32, num_heads=4, norm_groups=16)
    file = checkpoint.save(random_module(config), tmp_path / "m.safetensors", metadata={"x": 1})
    (tmp_path / "config.json").write_text(adapter_config(config, motion_num_attention_heads=2))
    assert checkpoint.load(file).config.num_heads == 4


def test_a_folder_may_have_the_released_name(tmp_path, random_module, thin_config):
    module = random_module(thin_config(max_frames=32, num_heads=8, norm_groups=32))
    folder = tmp_path / "animatediff_lightning_4step_diffusers"
    file = checkpoint.save(module, folder / "diffusion_pytorch_model.fp16.safetensors", "diffusers")
    assert checkpoint.load(file).steps == 4
    other = checkpoint.save(module, folder / "mm_sd_v15_v2.safetensors")
    assert checkpoint.load(other).steps == 0
