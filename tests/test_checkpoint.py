"""Motion module files: both layouts there and back, sizes, families, and every broken file."""

import re
import zipfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from animatediff_lightning.motion_module import facts, keys
from animatediff_lightning.motion_module.checkpoint import atomic_path, load, save
from animatediff_lightning.motion_module.config import MotionModuleConfig
from animatediff_lightning.motion_module.content import CheckpointError
from animatediff_lightning.motion_module.module import MotionModule
from diffusers import MotionAdapter

Tensors = dict[str, torch.Tensor]
NORM = "down_blocks.0.motion_modules.0.temporal_transformer.norm.weight"
QUERY = NORM.replace("norm.weight", "transformer_blocks.0.attention_blocks.0.to_q.weight")


@pytest.fixture(scope="module")
def config(thin_config):
    # the heads and groups of the released files, so that no metadata is needed
    return thin_config(max_frames=32, num_heads=8, norm_groups=32)


@pytest.fixture(scope="module")
def module(config, random_module):
    return random_module(config)


@pytest.fixture
def good(module) -> Tensors:
    return {k: t.clone() for k, t in module.state_dict().items()}


def assert_same(ours: Tensors, expected: Tensors) -> None:
    assert ours.keys() == expected.keys()
    for key, tensor in expected.items():
        assert ours[key].dtype == tensor.dtype, key
        assert torch.equal(ours[key], tensor), key


# ---- there and back ----------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["comfyui", "diffusers"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_is_saved_is_loaded_to_the_bit(tmp_path, random_module, config, layout, dtype):
    module = random_module(config).to(dtype)
    path = save(module, tmp_path / "new" / "m.safetensors", layout, {"steps": 4, "family": "mine"})
    found = load(path)
    assert (found.path, found.layout, found.dtype) == (path, layout, dtype)
    assert (found.steps, found.family, found.config) == (4, "mine", config)
    assert found.metadata["norm_scope"] == "frame"
    assert_same(found.state_dict, module.state_dict())
    assert_same(found.build().state_dict(), module.state_dict())
    # both tensors of a shared position table are their own, so that the module can be saved
    assert_same(load(save(found.build(), path)).state_dict, module.state_dict())


def test_heads_groups_and_scope_survive_without_other_metadata(tmp_path, thin_config):
    config = thin_config(num_heads=2, norm_groups=4, norm_scope="clip")
    path = save(MotionModule(config), tmp_path / "m.safetensors")
    assert load(path).config == config


def test_build_gives_the_asked_dtype_and_frozen_weights(tmp_path, module):
    found = load(save(module, tmp_path / "m.safetensors"))
    built = found.build(dtype=torch.float16)
    assert {t.dtype for t in built.state_dict().values()} == {torch.float16}
    assert not any(p.requires_grad or p.is_meta for p in built.parameters())
    assert found.state_dict[NORM].dtype == torch.float32


@pytest.mark.parametrize("layout", ["comfyui", "diffusers"])
@pytest.mark.parametrize("mid", [True, False])
def test_a_header_tells_what_the_whole_file_does(tmp_path, random_module, thin_config, layout, mid):
    module = random_module(thin_config(mid=mid, max_frames=32)).half()
    file = save(module, tmp_path / "m.safetensors", layout, {"steps": 4})
    assert facts.describe_header(file) == load(file).describe()


@pytest.mark.parametrize("end", [0.0, 0.001, 0.5, 0.999])
def test_a_cut_file_is_refused_by_its_header(tmp_path, module, end):
    file = save(module, tmp_path / "m.safetensors")
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * end)])
    with pytest.raises(CheckpointError, match=r"^m\.safetensors is truncated"):
        facts.describe_header(file)


def test_description_names_what_was_found(tmp_path, module):
    found = load(save(module, tmp_path / "m.safetensors", metadata={"steps": 2}))
    parameters = sum(p.numel() for p in module.parameters())
    for described in (found.describe(), found.without_tensors().describe()):
        assert described["family"] == "AnimateDiff-Lightning"
        assert described["steps"] == "2"
        assert described["dtype"] == "F32"
        assert described["motion modules"] == "7"
        assert described["channels"] == "32, 64"
        assert described["positions"] == "32 frames"
        assert described["parameters"] == f"{parameters:,}"
        assert described["norm"] == "32 groups over each frame"


def test_diffusers_layout_loads_into_diffusers(tmp_path, module):
    path = save(module, tmp_path / "m.safetensors", "diffusers")
    adapter = MotionAdapter(
        block_out_channels=(32, 64), motion_layers_per_block=1, motion_max_seq_length=32
    )
    adapter.load_state_dict(safetensors.torch.load_file(path), strict=True)
    assert_same(keys.from_diffusers(adapter.state_dict()), module.state_dict())


@pytest.mark.slow
def test_v2_in_half_precision_has_the_released_size(tmp_path):
    """Writes a file of 909 MB and takes about 2.7 GB of memory."""
    with torch.device("meta"):
        module = MotionModule(MotionModuleConfig()).half()
    module.to_empty(device="cpu")
    for tensor in module.state_dict().values():
        tensor.zero_()
    path = save(module, tmp_path / "v2.safetensors")
    with safetensors.safe_open(path, framework="pt") as file:
        assert len(list(file.keys())) == 588
        assert file.metadata() is None
    assert path.stat().st_size == 908_929_664
    path.unlink()


# ---- families and wrappings --------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".ckpt", ".pth", ".pt", ".bin"])
@pytest.mark.parametrize("zipped", [True, False])
def test_trainers_wrappings_are_taken_off(tmp_path, good, suffix, zipped):
    path = tmp_path / f"v2{suffix}"
    wrapped = {f"module.{k}": torch.nn.Parameter(t) for k, t in good.items()}
    content = {"epoch": 3, "state_dict": wrapped | {"animatediff_config": {"a": [1]}, 7: "x"}}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    found = load(path)
    assert_same(found.build().state_dict(), good)
    assert found.family == "AnimateDiff v2"
    assert found.steps == 0


def test_a_config_beside_bare_weights_is_ignored(tmp_path, good):
    torch.save(good | {"animatediff_config": {"a": 1}}, tmp_path / "m.ckpt")
    assert_same(load(tmp_path / "m.ckpt").state_dict, good)


def test_animatelcm_gets_64_computed_positions(tmp_path, good, random_module, thin_config):
    bare = {k: t for k, t in good.items() if "pos_encoder" not in k}
    safetensors.torch.save_file(bare, tmp_path / "lcm.safetensors")
    found = load(tmp_path / "lcm.safetensors")
    assert found.family == "AnimateLCM"
    assert found.config.max_frames == 64
    longer = random_module(thin_config(max_frames=64, num_heads=8, norm_groups=32))
    assert_same(found.build().state_dict(), longer.state_dict())


def test_v3_has_no_middle(tmp_path, random_module, thin_config):
    module = random_module(thin_config(mid=False, max_frames=32, num_heads=8, norm_groups=32))
    found = load(save(module, tmp_path / "v3.safetensors"))
    assert found.family == "AnimateDiff v3"
    assert found.config.mid_block == ()
    assert found.describe()["mid block"] == "no"


@pytest.mark.parametrize(
    ("name", "metadata", "steps"),
    [
        ("animatediff_lightning_1step_comfyui.safetensors", None, 1),
        ("animatediff_lightning_8step_diffusers.safetensors", None, 8),
        ("AnimateDiff-Lightning-4-step.safetensors", None, 4),
        ("animatediff_lightning_8step_comfyui.safetensors", {"steps": 2}, 2),
        ("mm_sd_v15_v2.safetensors", None, 0),
        ("my_4step.safetensors", None, 0),
    ],
)
def test_steps_come_from_metadata_else_from_released_names(tmp_path, module, name, metadata, steps):
    found = load(save(module, tmp_path / name, metadata=metadata))
    assert found.steps == steps
    assert found.family == ("AnimateDiff-Lightning" if steps else "AnimateDiff v2")


# ---- writing -----------------------------------------------------------------------------------


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path, module, monkeypatch):
    path = save(module, tmp_path / "m.safetensors")
    before = path.read_bytes()

    def half_then_fail(_tensors, name, **_options):
        Path(name).write_bytes(before[: len(before) // 2])
        raise OSError("no space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", half_then_fail)
    with pytest.raises(OSError, match="no space left"):
        save(module, path, metadata={"steps": 4})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_target_that_cannot_be_replaced_leaves_nothing_behind(tmp_path):
    target = tmp_path / "m.safetensors"
    target.mkdir()
    with pytest.raises(OSError, match=re.escape(target.name)), atomic_path(target) as temporary:
        temporary.write_text("x")
    assert list(tmp_path.iterdir()) == [target]


def test_a_written_file_is_readable_by_others(tmp_path, module):
    expected = tmp_path / "plain"
    expected.touch()
    path = save(module, tmp_path / "m.safetensors")
    assert path.stat().st_mode == expected.stat().st_mode


def test_only_safetensors_and_known_layouts_are_written(tmp_path, module):
    with pytest.raises(
        ValueError, match=r"m\.ckpt: motion modules are written only as \.safetensors"
    ):
        save(module, tmp_path / "m.ckpt")
    with pytest.raises(ValueError, match='must be "comfyui" or "diffusers", not \'ldm\''):
        save(module, tmp_path / "m.safetensors", "ldm")
    assert list(tmp_path.iterdir()) == []


# ---- broken and foreign files ------------------------------------------------------------------

# Each maker writes one file from good tensors and returns its path.
Maker = Callable[[Path, Tensors], Path]


def tensors_file(change: Callable[[Tensors], Tensors], metadata: dict | None = None) -> Maker:
    def make(folder: Path, good: Tensors) -> Path:
        path = folder / "m.safetensors"
        safetensors.torch.save_file(change(good), path, metadata=metadata)
        return path

    return make


def edited(**edits) -> Maker:
    """A file whose tensor (query or norm) is replaced by what a function makes of it."""
    names = {"query": QUERY, "norm": NORM}
    return tensors_file(lambda g: g | {names[n]: f(g[names[n]]) for n, f in edits.items()})


def foreign(*names: str) -> Maker:
    """A file of some other model, by the names of its tensors."""
    return tensors_file(lambda _: {name: torch.zeros(2, 2) for name in names})


def cut(fraction: str) -> Maker:
    def make(folder: Path, good: Tensors) -> Path:
        path = tensors_file(lambda g: g)(folder, good)
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * Fraction(fraction))])
        return path

    return make


def raw(name: str, content: bytes) -> Maker:
    def make(folder: Path, _good: Tensors) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def pickled(content: object, name: str = "m.ckpt") -> Maker:
    def make(folder: Path, _good: Tensors) -> Path:
        torch.save(content, folder / name)
        return folder / name

    return make


def truncated_pickle(folder: Path, good: Tensors) -> Path:
    path = folder / "m.ckpt"
    torch.save(good, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def foreign_zip(folder: Path, _good: Tensors) -> Path:
    with zipfile.ZipFile(folder / "m.pth", "w") as file:
        file.writestr("readme.txt", "hello")
    return folder / "m.pth"


def folder_named_like_a_file(folder: Path, _good: Tensors) -> Path:
    (folder / "m.safetensors").mkdir()
    return folder / "m.safetensors"


def poke(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def put(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.clone()
        tensor[-1, -1] = value
        return tensor

    return put


def without(part: str) -> Maker:
    return tensors_file(lambda g: {k: t for k, t in g.items() if part not in k})


def with_extra(*names: str) -> Maker:
    return tensors_file(lambda g: g | {n: torch.zeros(4, 4, 3, 3) for n in names})


def renumbered(folder: Path, good: Tensors) -> Path:
    gap = {
        k.replace("up_blocks.1.motion_modules.1", "up_blocks.1.motion_modules.2"): t
        for k, t in good.items()
    }
    return tensors_file(lambda _: gap)(folder, good)


def v1(folder: Path, good: Tensors) -> Path:
    short = {k: t[:, :24].clone() if k.endswith(".pe") else t for k, t in good.items()}
    return without("mid_block")(folder, short)


def sdxl(folder: Path, _good: Tensors) -> Path:
    norms = {
        f"down_blocks.{i}.motion_modules.{j}.temporal_transformer.norm.weight": torch.ones(c)
        for i, c in enumerate((320, 640, 1280))
        for j in (0, 1)
    }
    return tensors_file(lambda _: norms)(folder, {})


def v2_without_its_last_down_block(folder: Path, _good: Tensors) -> Path:
    norms = {
        f"{side}_blocks.{i}.motion_modules.0.temporal_transformer.norm.weight": torch.ones(c)
        for side, widths in (("down", (320, 640, 1280)), ("up", (1280, 1280, 640, 320)))
        for i, c in enumerate(widths)
    }
    return tensors_file(lambda _: norms)(folder, {})


def odd_width(folder: Path, _good: Tensors) -> Path:
    with torch.device("meta"):
        config = MotionModuleConfig(((36,),), (36,), ((36, 36),), num_heads=4, norm_groups=4)
        shapes = {k: t.shape for k, t in MotionModule(config).state_dict().items()}
    return tensors_file(lambda _: {k: torch.zeros(s) for k, s in shapes.items()})(folder, {})


def long_list_of_damage(folder: Path, good: Tensors) -> Path:
    return without("attention_blocks.0.to_")(folder, good)


LDM = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
MOTION_LORA = (
    "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0."
    "attention_blocks.0.processor.to_q_lora.down.weight"
)
UNET = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight"

BROKEN: dict[str, tuple[Maker, str]] = {
    # damaged
    "cut in the header": (
        cut("1/1000"),
        "is truncated, or is not a safetensors file (invalid header",
    ),
    "cut in the data": (
        cut("1/2"),
        "is truncated, or is not a safetensors file (incomplete metadata",
    ),
    "empty file": (
        raw("m.safetensors", b""),
        "is empty; download it again",
    ),
    "text file": (
        raw("m.safetensors", b"These are not the weights."),
        "is truncated, or is not a safetensors file (header too large); download it again",
    ),
    "folder": (folder_named_like_a_file, "is a folder; give the weights file inside it"),
    "missing file": (lambda f, _: f / "m.safetensors", "; check the name and the folder"),
    "unknown extension": (
        raw("m.zip", b"x"),
        "does not have the extension of a weights file; use one of .s",
    ),
    "no extension": (
        raw("weights", b"x"),
        "does not have the extension of a weights file; use one of .s",
    ),
    "cut pickle": (truncated_pickle, "is truncated, or is not a PyTorch file; download it again"),
    "empty pickle": (
        raw("m.ckpt", b""),
        "is empty; download it again",
    ),
    "one byte": (raw("m.pt", b"\x80"), "is truncated, or is not a PyTorch file; download it again"),
    "foreign zip": (foreign_zip, "is truncated, or is not a PyTorch file; download it again"),
    "text named pickle": (
        raw("m.ckpt", b"These are not the weights."),
        "is damaged, or is not a PyTorch file; download it again",
    ),
    "pickle with an object": (
        pickled({"state_dict": {}, "config": Fraction(1, 2)}),
        "holds more than tensors (fractions.Fraction) and is not opened, for safety; use the .saf",
    ),
    "pickled list": (pickled([torch.zeros(1)]), "holds a list in place of a state dict; use"),
    "pickled tensor": (pickled(torch.zeros(1)), "holds a Tensor in place of a state dict; use"),
    "numbered tensors": (pickled({0: torch.zeros(1)}), "holds no tensors; download it again"),
    "empty state dict": (pickled({"state_dict": {}}), "holds no tensors; download it again"),
    "no tensors": (tensors_file(lambda _: {}), "holds no tensors; download it again"),
    # not whole, or not what they should be
    "missing key": (without(QUERY), f"lacks {QUERY}; the file is incomplete"),
    "many missing": (long_list_of_damage, " and 32 more; the file is incomplete, download it"),
    "missing part": (without("up_blocks.1.motion_modules.0"), "lacks up_blocks.1.motion_modules.0"),
    "missing block": (without("down_blocks.1."), "has 1 down blocks but 2 up blocks; the file is"),
    "missing block of v2": (v2_without_its_last_down_block, "has 3 down blocks but 4 up blocks; t"),
    "hole in the numbering": (renumbered, "lacks up_blocks.1.motion_modules.1.temporal_transform"),
    "extra key": (with_extra(NORM + "2"), f"has unknown {NORM}2; use a file in one of the"),
    "key on two lines": (with_extra("mid_block\nx"), "has unknown mid_block x; use a file in one"),
    "wrong shape": (
        edited(query=lambda t: t[:-1].clone()),
        f"has {QUERY} of shape (31, 32) instead of (32, 32); the file is damaged or of another",
    ),
    "norm without a shape": (edited(norm=lambda _: torch.tensor(1.0)), "has 1 channels, which do"),
    "NaN": (edited(query=poke(float("nan"))), f"has NaN or infinite values in {QUERY}; download"),
    "infinity": (edited(query=poke(float("inf"))), f"has NaN or infinite values in {QUERY}; downl"),
    "NaN in half": (
        edited(query=lambda t: poke(float("nan"))(t.half())),
        f"has NaN or infinite values in {QUERY}; download it again",
    ),
    "integers": (edited(query=lambda t: t.long()), f"has {QUERY} as torch.int64; save its weight"),
    "8 bits": (
        edited(query=lambda t: t.to(torch.float8_e4m3fn)),
        f"has {QUERY} as torch.float8_e4m3fn; save its weights as float16, bfloat16 or float32",
    ),
    # metadata
    "heads no number": (
        tensors_file(lambda g: g, {"num_heads": "eight"}),
        "has num_heads='eight' in its metadata, which is not a whole number; save the file again",
    ),
    "no heads": (
        tensors_file(lambda g: g, {"num_heads": "0"}),
        "cannot be built from its tensors and metadata: num_heads must be at least 1, not 0",
    ),
    "norm scope": (
        tensors_file(lambda g: g, {"norm_scope": "video"}),
        'tensors and metadata: norm_scope must be "frame" or "clip", not \'video\'',
    ),
    "heads do not divide": (odd_width, "36 channels, which do not divide into 8 heads; set num_he"),
    "groups do not divide": (
        tensors_file(lambda g: g, {"norm_groups": "48"}),
        "32 channels, which do not divide into 48 norm groups; set norm_groups",
    ),
    "steps no number": (
        tensors_file(lambda g: g, {"steps": "four"}),
        "has steps='four' in its metadata, which is not a whole number; save the file again",
    ),
    # other families
    "v1": (v1, "is an AnimateDiff v1 motion module (24 positions, no mid block)"),
    "SDXL": (
        sdxl,
        "is an AnimateDiff-SDXL motion module; it needs an SDXL base model, so use an SD1.5",
    ),
    "HotShot-XL": (
        foreign(
            "down_blocks.0.temporal_attentions.0.transformer_blocks.0.attention_blocks.0."
            "pos_encoder.positional_encoding"
        ),
        "is a HotShot-XL motion module; it needs an SDXL base model, so use an SD1.5 motion module",
    ),
    "PIA": (with_extra("conv_in.weight"), "is a PIA motion module, which replaces the base model"),
    "motion LoRA": (
        foreign(MOTION_LORA),
        "is a motion LoRA, not a motion module; put it into models/animatediff_motion_lora",
    ),
    "diffusers motion LoRA": (
        foreign(
            "unet.down_blocks.0.motion_modules.0.transformer_blocks.0.attn1.to_q.lora_A.weight"
        ),
        "is a motion LoRA, not a motion module; put it into models/animatediff_motion_lora",
    ),
    "whole video UNet": (
        with_extra("conv_in.weight", "down_blocks.0.resnets.0.conv1.weight"),
        "is a whole UNet with a motion module inside; export the motion module by itself",
    ),
    # other models
    "SD checkpoint": (
        foreign(LDM, "cond_stage_model.transformer.x", "first_stage_model.encoder.x"),
        "is a Stable Diffusion checkpoint, not a motion module; put it into models/checkpoints and",
    ),
    "SDXL checkpoint": (foreign(LDM, "conditioner.embedders.0.x"), "is an SDXL checkpoint, not a "),
    "kohya LoRA": (
        foreign("lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight"),
        "is a LoRA for the image model, not a motion module; put it into models/loras and load it",
    ),
    "diffusers LoRA": (
        foreign(f"unet.{UNET[:-7]}.lora_A.weight"),
        "is a LoRA for the image model, not a motion module; put it into models/loras and load it",
    ),
    "VAE": (foreign("encoder.conv_in.weight", "decoder.mid.block_1.conv1.weight"), "is a VAE, not"),
    "diffusers VAE": (
        foreign("encoder.conv_in.weight", "encoder.mid_block.resnets.0.conv1.weight"),
        "is a VAE, not a motion module; put it into models/vae and load it with Load VAE",
    ),
    "ControlNet": (foreign("control_model.input_blocks.0.0.weight"), "is a ControlNet, not a mot"),
    "diffusers ControlNet": (
        foreign(UNET, "conv_in.weight", "controlnet_cond_embedding.conv_in.weight"),
        "is a ControlNet, not a motion module; put it into models/controlnet and load it with Load",
    ),
    "CLIP": (foreign("text_model.encoder.layers.0.mlp.fc1.weight"), "is a CLIP model, not a moti"),
    "IP-Adapter": (foreign("image_proj.proj.weight"), "is an IP-Adapter, not a motion module"),
    "CameraCtrl": (foreign("camera_encoder.x"), "is a CameraCtrl model, not a motion module"),
    "textual inversion": (foreign("emb_params"), "is a textual inversion embedding, not a motion"),
    "pickled textual inversion": (
        pickled({"string_to_param": {"*": torch.zeros(1, 768)}, "name": "x"}),
        "is a textual inversion embedding, not a motion module; put it into models/embeddings",
    ),
    "diffusers UNet": (foreign(UNET, "conv_in.weight"), "is an image UNet without motion, not a m"),
    "LDM UNet": (foreign("input_blocks.0.0.weight"), "is an image UNet without motion, not a moti"),
    "unknown": (foreign("encoder.layer.0"), "is not a motion module, and its kind is unknown"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_or_foreign_file_is_refused_in_one_sentence(tmp_path, good, kind):
    make, phrase = BROKEN[kind]
    path = make(tmp_path, good)
    with pytest.raises(CheckpointError) as raised:
        load(path)
    message = str(raised.value)
    assert phrase in message
    assert message.startswith(f"{path.name} ")
    assert message.endswith(".")
    assert not message.endswith("..")
    assert "\n" not in message
    # one sentence: a full stop ends it, and those within stand in names and numbers only
    assert not re.search(r"[.!?]\s", message)
    # what to do about it
    advice = "download|use|get|give|check|load|put|save|set|export|run|log|it needs|the file is"
    assert re.search(f"; ({advice})| must be ", message)


def test_good_tensors_are_good(tmp_path, good):
    """Or the table above would prove nothing."""
    assert load(tensors_file(lambda g: g)(tmp_path, good)).config.mid_block == (64,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_cut_anywhere_is_refused_in_one_sentence(tmp_path, good, zipped):
    whole, path = tmp_path / "whole.ckpt", tmp_path / "m.ckpt"
    torch.save({NORM: good[NORM]}, whole, _use_new_zipfile_serialization=zipped)
    content = whole.read_bytes()
    # the last bytes are an archive's comment or padding, which nothing misses
    for end in range(0, len(content) - 200, 1 + len(content) // 150):
        path.write_bytes(content[:end])
        with pytest.raises(CheckpointError, match=r"^m\.ckpt is (empty|truncated|damaged)"):
            load(path)


def test_a_sum_that_overflows_is_no_infinite_value(tmp_path, good):
    good[QUERY] = torch.full_like(good[QUERY], 3e38)
    assert not good[QUERY].sum().isfinite()
    assert torch.equal(
        load(tensors_file(lambda g: g)(tmp_path, good)).state_dict[QUERY], good[QUERY]
    )


def test_the_reasons_for_a_refusal_reach_the_log(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"short")
    with pytest.raises(CheckpointError) as raised:
        load(path)
    assert isinstance(raised.value.__cause__.__cause__, safetensors.SafetensorError)
