"""Motion LoRAs: every key style, exact merging and unmerging, and every broken or foreign file."""

import re
import time

import numpy as np
import pytest
import torch
from animatediff_lightning.distill import generate as clips
from animatediff_lightning.distill.cli.program import main
from animatediff_lightning.distill.sampling.request import parse_motion_lora
from animatediff_lightning.motion_module import checkpoint, lora
from animatediff_lightning.motion_module.config import MotionModuleConfig
from animatediff_lightning.motion_module.content import CheckpointError
from animatediff_lightning.motion_module.module import MotionModule
from PIL import Image
from safetensors.torch import save_file

from . import random_models

BLOCK = "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0."
ORIGINAL = BLOCK + "attention_blocks.0.processor.to_q_lora.down.weight"
QUERY = BLOCK + "attention_blocks.0.to_q.weight"


@pytest.fixture(scope="module")
def config(thin_config):
    return thin_config()


@pytest.fixture
def module(config, random_module):
    return random_module(config)


def random_lora(config, rank=4, seed=0):
    """Return a motion LoRA in the original key names: q, k, v and out of every attention."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for address, c in config.addresses().items():
        for i in (0, 1):
            attention = f"{address}.temporal_transformer.transformer_blocks.0.attention_blocks.{i}"
            for name in ("q", "k", "v", "out"):
                key = f"{attention}.processor.to_{name}_lora"
                tensors[f"{key}.down.weight"] = torch.randn(rank, c, generator=generator) / c**0.5
                tensors[f"{key}.up.weight"] = torch.randn(c, rank, generator=generator)
    return tensors


def expected_change(tensors, key):
    """Return up @ down for a weight of the module, by the original implementation's rule."""
    name = key.replace(".to_out.0.", ".to_out.")
    name = re.sub(r"\.(to_(?:q|k|v|out))\.weight$", r".processor.\1_lora", name)
    return tensors[f"{name}.up.weight"] @ tensors[f"{name}.down.weight"]


def saved(folder, tensors, name="lora.safetensors"):
    if name.endswith(".safetensors"):
        save_file({k: t.contiguous() for k, t in tensors.items()}, folder / name)
    else:
        torch.save(tensors, folder / name)
    return folder / name


def snapshot(module):
    return {k: t.clone() for k, t in module.state_dict().items()}


def assert_bit_equal(module, state):
    assert all(torch.equal(t, state[k]) for k, t in module.state_dict().items())


def clip(module):
    """Run the first part of a module on a fixed input."""
    part = module.temporal_transformers()["down_blocks.0.motion_modules.0"]
    x = torch.randn(8, 32, 4, 4, generator=torch.Generator().manual_seed(9))
    return part(x, num_frames=8)


# ---- the effect --------------------------------------------------------------------------------


def test_the_effect_is_w_plus_strength_up_down(tmp_path, config, module):
    tensors = random_lora(config)
    before = snapshot(module)
    found = lora.load(saved(tmp_path, tensors))
    lora.merge(module, [(found, 0.7)])
    changed = 0
    for key, weight in module.state_dict().items():
        if ".to_" in key and key.endswith(".weight"):
            expected = before[key] + 0.7 * expected_change(tensors, key)
            assert (weight - expected).norm() / expected.norm() < 1e-6, key
            changed += 1
        else:
            assert torch.equal(weight, before[key]), key
    assert changed == len(found.pairs) == 7 * 8


@pytest.mark.slow
def test_two_equal_their_sum_and_their_order_is_no_matter(tmp_path, config, random_module):
    first, second = random_lora(config, seed=1), random_lora(config, rank=2, seed=2)
    a = lora.load(saved(tmp_path, first, "a.safetensors"))
    b = lora.load(saved(tmp_path, second, "b.safetensors"))
    together, apart, swapped = (random_module(config) for _ in range(3))
    before = snapshot(together)
    lora.merge(together, [(a, 0.5), (b, -0.3)])
    lora.merge(apart, [(a, 0.5)])
    lora.merge(apart, [(b, -0.3)])
    lora.merge(swapped, [(b, -0.3), (a, 0.5)])
    for key in a.pairs:
        change = 0.5 * expected_change(first, key) - 0.3 * expected_change(second, key)
        expected = before[key] + change
        for module in (together, apart, swapped):
            weight = module.state_dict()[key]
            assert (weight - expected).norm() / expected.norm() < 1e-6, key


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_unmerging_is_exact_in_weights_and_output(tmp_path, config, module, dtype):
    module = module.to(dtype)
    found = lora.load(saved(tmp_path, random_lora(config)))
    before = snapshot(module)
    plain = clip(module.float()) if dtype is torch.float32 else None
    merged = lora.merge(module, [(found, 0.8), (found, 3.0)])
    assert {t.dtype for t in module.state_dict().values()} == {dtype}
    if plain is not None:
        assert (clip(module) - plain).norm() / plain.norm() > 1e-3
    merged.unmerge()
    assert_bit_equal(module, before)
    if plain is not None:
        assert torch.equal(clip(module), plain)
    merged.unmerge()
    assert_bit_equal(module, before)


def test_merges_come_off_in_reverse_order_only(tmp_path, config, module):
    found = lora.load(saved(tmp_path, random_lora(config)))
    before = snapshot(module)
    first = lora.merge(module, [(found, 1.0)])
    after_first = snapshot(module)
    second = lora.merge(module, [(found, 1.0)])
    with pytest.raises(ValueError, match="undo the later changes first"):
        first.unmerge()
    second.unmerge()
    assert_bit_equal(module, after_first)
    first.unmerge()
    assert_bit_equal(module, before)


def test_strength_zero_and_no_loras_change_nothing(tmp_path, config, module):
    before = snapshot(module)
    lora.merge(module, [])
    lora.merge(module, [(lora.load(saved(tmp_path, random_lora(config))), 0.0)])
    assert_bit_equal(module, before)


# ---- files -------------------------------------------------------------------------------------


def diffusers_names(tensors):
    """Rename as diffusers' conversion script of motion LoRAs does."""
    pairs = [
        (".temporal_transformer", ""),
        (".attention_blocks.0", ".attn1"),
        (".attention_blocks.1", ".attn2"),
    ]
    out = {}
    for key, tensor in tensors.items():
        for ours, theirs in pairs:
            key = key.replace(ours, theirs)
        out[f"unet.{key}"] = tensor
    return out


def peft_names(tensors, down="lora_A", up="lora_B"):
    """Rename as newer diffusers saves a LoRA of its own."""
    out = {}
    for key, tensor in diffusers_names(tensors).items():
        key = key.replace(".processor.", ".").replace("to_out_lora", "to_out.0_lora")
        out[key.replace("_lora.down.", f".{down}.").replace("_lora.up.", f".{up}.")] = tensor
    return out


STYLES = {
    "original": lambda t: t,
    "original in module.": lambda t: {f"module.{k}": v for k, v in t.items()},
    "original in unet.": lambda t: {f"unet.{k}": v for k, v in t.items()},
    "diffusers": diffusers_names,
    "diffusers without unet.": lambda t: {
        k.removeprefix("unet."): v for k, v in diffusers_names(t).items()
    },
    "peft": peft_names,
    "lora.down": lambda t: peft_names(t, "lora.down", "lora.up"),
    "lora_down": lambda t: peft_names(t, "lora_down", "lora_up"),
}


@pytest.mark.parametrize("style", STYLES)
def test_key_styles_are_one_lora(tmp_path, config, style):
    tensors = random_lora(config)
    expected = lora.load(saved(tmp_path, tensors)).pairs
    found = lora.load(saved(tmp_path, STYLES[style](tensors), "other.safetensors")).pairs
    assert found.keys() == expected.keys()
    for key, pair in expected.items():
        assert torch.equal(found[key].up, pair.up), key
        assert torch.equal(found[key].down, pair.down), key
        assert found[key].scale == pair.scale == 1


def test_names_of_peft_and_diffusers_are_as_written_in_the_wild():
    """Guards the renaming of this test itself."""
    halves = {ORIGINAL: 0, ORIGINAL.replace("to_q", "to_out").replace("down.w", "up.w"): 1}
    block = "unet.down_blocks.0.motion_modules.0.transformer_blocks.0.attn1."
    assert list(diffusers_names(halves)) == [
        f"{block}processor.to_q_lora.down.weight",
        f"{block}processor.to_out_lora.up.weight",
    ]
    names = [f"{block}to_q.lora_A.weight", f"{block}to_out.0.lora_B.weight"]
    assert list(peft_names(halves)) == names


def test_a_pickle_with_trainers_wrapping(tmp_path, config):
    tensors = random_lora(config)
    wrapped = {"state_dict": {f"module.{k}": t for k, t in tensors.items()}, "epoch": 3}
    found = lora.load(saved(tmp_path, wrapped, "v2_lora_ZoomIn.ckpt"))
    assert found.pairs.keys() == lora.load(saved(tmp_path, tensors)).pairs.keys()


def test_a_lora_may_change_some_weights_only_and_ranks_may_differ(tmp_path, config, module):
    tensors = {k: t for k, t in random_lora(config).items() if k.startswith("up_blocks.1")}
    other = random_lora(config, rank=2)
    tensors |= {k: t for k, t in other.items() if k.startswith("mid_block")}
    before = snapshot(module)
    lora.merge(module, [(lora.load(saved(tmp_path, tensors)), 1.0)])
    changed = {k for k, t in module.state_dict().items() if not torch.equal(t, before[k])}
    assert {k.partition(".motion_modules")[0] for k in changed} == {"up_blocks.1", "mid_block"}


def test_a_feed_forward_may_have_a_lora(tmp_path, config, module):
    key = "unet.down_blocks.0.motion_modules.0.transformer_blocks.0.ff.net.2"
    pair = {f"{key}.lora_A.weight": torch.randn(4, 128), f"{key}.lora_B.weight": torch.randn(32, 4)}
    found = lora.load(saved(tmp_path, pair))
    assert list(lora.weight_patches(found, config)) == [f"{BLOCK}ff.net.2.weight"]
    lora.merge(module, [(found, 1.0)])


def test_the_mid_block_is_left_out_where_there_is_none(tmp_path, config, thin_config):
    found = lora.load(saved(tmp_path, random_lora(config)))
    without = thin_config(mid=False)
    assert found.beyond(config) == []
    assert len(found.beyond(without)) == 8
    assert found.pairs.keys() - lora.weight_patches(found, without) == set(found.beyond(without))


@pytest.mark.slow
def test_full_size_rank_64(tmp_path):
    """The shape of the released camera moves for v2: 77 MB in F32."""
    config = MotionModuleConfig()
    path = saved(tmp_path, random_lora(config, rank=64), "v2_lora_ZoomIn.ckpt")
    start = time.perf_counter()
    found = lora.load(path)
    patches = lora.weight_patches(found, config)
    seconds = time.perf_counter() - start
    assert len(patches) == 21 * 8
    assert {pair.up.shape[1] for pair in patches.values()} == {64}
    print(f"{path.stat().st_size:,} bytes in {seconds:.2f} s")
    assert seconds < 5
    with torch.device("meta"):
        shapes = {k: p.shape for k, p in MotionModule(config).named_parameters()}
    assert all(shapes[k] == (len(p.up), p.down.shape[1]) for k, p in patches.items())


# ---- refusals ----------------------------------------------------------------------------------


def without(name):
    return lambda t: {k: v for k, v in t.items() if k != name}


def with_tensor(name, tensor):
    return lambda t: {**t, name: tensor}


UP = ORIGINAL.replace("down", "up").replace("up_blocks", "down_blocks")
BAD_TENSORS = {
    "up half missing": (without(UP), f"lacks the up half of {QUERY}; the file is incomplete"),
    "down half missing": (without(ORIGINAL), f"lacks the down half of {QUERY}; the file is inc"),
    "rank of the halves": (
        with_tensor(UP, torch.zeros(32, 3)),
        f"has {QUERY} of rank 3 up but 4 down; the file is damaged, download it again",
    ),
    "a convolution": (
        with_tensor(UP, torch.zeros(32, 4, 1, 1)),
        f"has {QUERY} (up) of shape (32, 4, 1, 1); use a motion LoRA whose halves",
    ),
    "NaN": (
        with_tensor(UP, torch.full((32, 4), torch.nan)),
        f"has NaN or infinite values in {UP}; download it again",
    ),
    "infinite": (
        with_tensor(ORIGINAL, torch.full((4, 32), torch.inf)),
        f"has NaN or infinite values in {ORIGINAL}; download it again",
    ),
    "integers": (
        with_tensor(ORIGINAL, torch.zeros(4, 32, dtype=torch.int8)),
        f"has {QUERY} (down) as torch.int8; save it as float16",
    ),
    "alphas in a row": (
        with_tensor(ORIGINAL.replace("down.weight", "alpha"), torch.ones(2)),
        "to_q_lora.alpha of shape (2,); download it again",
    ),
    "alpha NaN": (
        with_tensor(ORIGINAL.replace("down.weight", "alpha"), torch.tensor(torch.nan)),
        "to_q_lora.alpha = nan, from which its strength cannot be read; save the LoRA again",
    ),
    "another tensor": (
        with_tensor("weights.0", torch.zeros(1)),
        "has unknown weights.0; use a motion LoRA with the key names of a known trainer",
    ),
    "DoRA": (
        with_tensor(ORIGINAL.replace("_lora.down.weight", ".lora_magnitude_vector"), torch.ones(4)),
        "to_q.lora_magnitude_vector, so it changes weights by DoRA, which is not supported; use a",
    ),
    "LoHa": (
        with_tensor(ORIGINAL.replace("_lora.down.weight", ".hada_w1_a"), torch.ones(4, 4)),
        "to_q.hada_w1_a, so it changes weights by LoHa, which is not supported; use a plain LoRA",
    ),
    "biases": (
        with_tensor(ORIGINAL.replace("_lora.down.weight", ".lora_B.bias"), torch.ones(4)),
        "to_q.lora_B.bias, so it changes weights by biases, which is not supported; use a plain",
    ),
    "one weight twice": (
        with_tensor(f"unet.{ORIGINAL}", torch.zeros(4, 32)),
        f"changes a weight twice, the second time by unet.{ORIGINAL}; download it again",
    ),
    # for another module
    "other width": (
        lambda _: {UP: torch.zeros(64, 4), ORIGINAL: torch.zeros(4, 64)},
        f"is for another motion module: it changes {QUERY} of 64 x 64 instead of 32 x 32; use a",
    ),
    "other depth": (
        lambda _: {
            UP.replace("blocks.0", "blocks.7", 1): torch.zeros(32, 4),
            ORIGINAL.replace("blocks.0", "blocks.7", 1): torch.zeros(4, 32),
        },
        f"is for another motion module: this one lacks {QUERY.replace('blocks.0', 'blocks.7', 1)}",
    ),
    "not a matrix of the module": (
        lambda _: {
            f"{BLOCK}norms.0.lora_A.weight": torch.zeros(4, 32),
            f"{BLOCK}norms.0.lora_B.weight": torch.zeros(32, 4),
        },
        f"is for another motion module: this one lacks {BLOCK}norms.0.weight; use a motion LoRA",
    ),
}
FOREIGN = {
    "image LoRA": ("lora_unet_x.lora_down.weight", "a LoRA for the image model, not a motion LoRA"),
    "diffusers image LoRA": (
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight",
        "is a LoRA for the image model, not a motion LoRA; put it into models/loras",
    ),
    "motion module": (
        QUERY,
        "is a motion module, not a motion LoRA; put it into models/animatediff_",
    ),
    "SD checkpoint": (
        "cond_stage_model.transformer.x",
        "is a Stable Diffusion checkpoint, not a motion LoRA; put it into models/",
    ),
    "VAE": (
        "first_stage_model.x",
        "is a VAE, not a motion LoRA; put it into models/vae and load it with Load VAE",
    ),
    "ControlNet": (
        "control_model.x",
        "is a ControlNet, not a motion LoRA; put it into models/controlnet and load",
    ),
    "unknown": ("weights.0", "is not a motion LoRA, and its kind is unknown; use one for A"),
}


def assert_refused(path, config, phrase):
    with pytest.raises(CheckpointError) as raised:
        lora.weight_patches(lora.load(path), config)
    message = str(raised.value)
    print(message)
    assert phrase in message
    assert message.startswith(f"{path.name} ")
    assert message.endswith(".")
    assert "\n" not in message
    assert not re.search(r"[.!?]\s", message)
    assert re.search(r"; (use|load|put|save|download|check|the file is)", message)


@pytest.mark.parametrize("case", BAD_TENSORS)
def test_a_bad_lora_is_refused_in_one_sentence(tmp_path, config, case):
    change, phrase = BAD_TENSORS[case]
    path = saved(tmp_path, change(random_lora(config)))
    assert_refused(path, config, phrase)


@pytest.mark.parametrize("case", FOREIGN)
def test_another_kind_of_file_is_named_for_what_it_is(tmp_path, config, case):
    key, phrase = FOREIGN[case]
    assert_refused(saved(tmp_path, {key: torch.zeros(4, 4)}), config, phrase)


def test_unreadable_files_are_refused_in_one_sentence(tmp_path, config):
    good = saved(tmp_path, random_lora(config)).read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(good[:1000])
    (tmp_path / "empty.ckpt").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("zoom in")
    torch.save({"string_to_param": {"*": torch.zeros(1)}}, tmp_path / "embedding.pt")
    for name, phrase in (
        ("cut.safetensors", "is truncated, or is not a safetensors file"),
        ("empty.ckpt", "is empty; download it again"),
        ("notes.txt", "does not have the extension of a weights file; use one of"),
        ("gone.ckpt", "was not found in"),
        ("embedding.pt", "is a textual inversion embedding, not a motion LoRA; put it into"),
    ):
        assert_refused(tmp_path / name, config, phrase)


def test_a_refused_lora_changes_nothing(tmp_path, config, module, thin_config):
    good = lora.load(saved(tmp_path, random_lora(config)))
    wide = lora.load(saved(tmp_path, random_lora(thin_config((64, 96))), "wide.safetensors"))
    before = snapshot(module)
    with pytest.raises(CheckpointError, match="another motion module"):
        lora.merge(module, [(good, 1.0), (wide, 1.0)])
    assert_bit_equal(module, before)


# ---- the command line --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "file", "strength"),
    [
        ("a.ckpt", "a.ckpt", 0.8),
        ("a.ckpt:0.5", "a.ckpt", 0.5),
        ("a.ckpt:-1", "a.ckpt", -1.0),
        ("C:\\loras\\a.ckpt", "C:\\loras\\a.ckpt", 0.8),
        ("C:\\loras\\a.ckpt:0.7", "C:\\loras\\a.ckpt", 0.7),
    ],
)
def test_file_and_strength(text, file, strength):
    path, value = parse_motion_lora(text)
    assert (str(path), value) == (file, strength)


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        (":0.8", "names no file; give FILE or FILE:STRENGTH."),
        ("a.ckpt:11", "strength must be between -10 and 10, not 11.0."),
        ("a.ckpt:nan", "strength must be between -10 and 10, not nan."),
    ],
)
def test_a_strength_out_of_range_is_refused(text, phrase):
    with pytest.raises(ValueError, match=re.escape(phrase)):
        parse_motion_lora(text)


def test_loras_that_do_not_fit_are_refused_before_the_base_is_read(
    tmp_path, config, module, thin_config, capsys
):
    path = checkpoint.save(module, tmp_path / "m.safetensors", metadata={"steps": 4})
    known = checkpoint.load(path)
    good = saved(tmp_path, random_lora(config))
    wide = saved(tmp_path, random_lora(thin_config((64, 96))), "wide.safetensors")
    assert len(clips._load_loras([(good, 0.8), (good, 0.1)], known)) == 2
    assert capsys.readouterr().err == ""
    with pytest.raises(CheckpointError, match="another motion module"):
        clips._load_loras([(good, 0.8), (wide, 0.8)], known)


@pytest.mark.slow
def test_generate_with_motion_loras(tmp_path, tmp_path_factory, capsys, monkeypatch):
    made = random_models.ensure(tmp_path_factory.mktemp("cache"))
    monkeypatch.chdir(tmp_path)
    known = checkpoint.load(made.motion_module)
    saved(tmp_path, random_lora(known.config))
    models = ("--base", made.base, "--motion-module", made.motion_module)
    common = ("generate", "--prompt", "a cat", "--frames", 3, "--steps", 1)

    def generate(*arguments):
        words = (*common, "--out", tmp_path / "clip.png", *arguments)
        code = main([str(word) for word in words])
        pixels = np.array(Image.open(tmp_path / "clip.png")) if code == 0 else None
        return pixels, capsys.readouterr().err

    file = "lora.safetensors"
    plain, _ = generate(*models)
    once, said = generate(*models, "--motion-lora", file)
    twice, _ = generate(*models, "--motion-lora", f"{file}:0.5", "--motion-lora", f"{file}:0.3")
    off, _ = generate(*models, "--motion-lora", f"{file}:0")
    assert "mid block" not in said
    assert not np.array_equal(once, plain)
    assert np.abs(twice.astype(int) - once).max() <= 1
    assert np.array_equal(off, plain)
    assert generate(*models, "--motion-lora", "gone.ckpt")[1] == (
        "error: the motion LoRA gone.ckpt was not found.\n"
    )
