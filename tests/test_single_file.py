"""SD1.5 checkpoint files as they are found: old keys, wrappings, missing parts, pickles."""

import io
import pickle
import sys
import types

import numpy as np
import pytest
import torch
from animatediff_lightning.distill.models import base_model
from safetensors.torch import load_file, save_file

from . import headless_ldm, random_models

CLIP = "cond_stage_model.transformer."
VAE = "first_stage_model."
UNET = "model.diffusion_model."


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return random_models.ensure(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def folder(models):
    return base_model.load_base(models.base)


@pytest.fixture(scope="module")
def weights(models, tmp_path_factory):
    file = headless_ldm.write(models.base, tmp_path_factory.mktemp("single") / "thin.safetensors")
    return load_file(file)


def load(models, path):
    return base_model.load_base(path, config=models.base)


def assert_same(single, folder):
    for name in ("unet", "vae", "text_encoder"):
        ours, theirs = (getattr(b, name).state_dict() for b in (single, folder))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[k], theirs[k]) for k in theirs), name


def as_nai(weights):
    return {k.replace(CLIP + "text_model.", CLIP): t for k, t in weights.items()}


def with_positions(dtype):
    positions = torch.arange(77, dtype=dtype)[None]
    return lambda w: w | {CLIP + "text_model.embeddings.position_ids": positions}


def with_average(weights):
    """Add half-precision averages under the two kinds of keys that trainers use, and losses."""
    averages = {
        "model_ema." + k.removeprefix("model.").replace(".", ""): t.half() + 1
        for k, t in weights.items()
        if k.startswith(UNET)
    }
    decay = {"model_ema.decay": torch.tensor(0.99), "model_ema.num_updates": torch.tensor(1)}
    return weights | averages | decay | {VAE + "loss.logvar": torch.zeros(1)}


FORMS = {
    "as SD1.5": dict,
    "without text_model": as_nai,
    "with positions": with_positions(torch.int64),
    "with positions as numbers": with_positions(torch.float32),
    "with averages": with_average,
    "with the head of CLIP": lambda w: w | {"cond_stage_model.logit_scale": torch.ones(())},
    "of a module": lambda w: {"module." + k: t for k, t in w.items()},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("extension", ["safetensors", "sft", "ckpt"])
def test_files_that_comfyui_loads_are_the_same_base(
    tmp_path, models, folder, weights, form, extension
):
    path = tmp_path / f"base.{extension}"
    content = FORMS[form](weights)
    if extension == "ckpt":
        torch.save({"state_dict": content, "global_step": 840000}, path)
    else:
        save_file(content, path)
    assert_same(load(models, path), folder)


def without(*prefixes):
    return lambda w: {k: t for k, t in w.items() if not k.startswith(prefixes)}


REFUSED = {
    "no VAE": (
        without(VAE),
        "holds no VAE; use a checkpoint with its VAE, or a diffusers folder.",
    ),
    "the UNet alone": (without(VAE, CLIP), "holds no text encoder; use a checkpoint with its"),
    "no UNet": (without(UNET), "holds no UNet; use a checkpoint with its UNet"),
    "a weight of the UNet missing": (
        without(UNET + "input_blocks.1.0.in_layers.2.weight"),
        "lacks 1 of the 686 weights of its UNet; download it again.",
    ),
    "the decoder missing": (
        without(VAE + "decoder."),
        "lacks 136 of the 244 weights of its VAE; download it again.",
    ),
    "a weight of the text encoder missing": (
        without(CLIP + "text_model.final_layer_norm.bias"),
        "final_layer_norm.bias of its text encoder; download it again.",
    ),
    "other keys of the text encoder": (
        lambda w: {k.replace("encoder.layers", "encoder.block"): t for k, t in w.items()},
        "of its text encoder; download it again.",
    ),
    "other shapes": (
        lambda w: w | {UNET + "out.2.bias": torch.zeros(9)},
        "is damaged, or is not an SD1.5 base model.",
    ),
    "inpainting": (
        lambda w: w | {UNET + "input_blocks.0.0.weight": torch.zeros(32, 9, 3, 3)},
        "is an inpainting checkpoint; use a plain SD1.5 one.",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("extension", ["safetensors", "ckpt"])
def test_what_is_missing_is_told_in_one_sentence(tmp_path, models, weights, case, extension):
    change, sentence = REFUSED[case]
    path = tmp_path / f"base.{extension}"
    save = save_file if extension == "safetensors" else torch.save
    save(change(weights), path)
    with pytest.raises(ValueError, match=r"^base\.") as refusal:
        load(models, path)
    assert sentence in str(refusal.value)
    assert "\n" not in str(refusal.value)


def lightning_callback(monkeypatch):
    """Return the class of a callback under the name that PyTorch Lightning gives it."""
    name = "pytorch_lightning.callbacks.model_checkpoint"
    module = types.ModuleType(name)
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": name})
    for part in ("pytorch_lightning", "pytorch_lightning.callbacks"):
        monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
    monkeypatch.setitem(sys.modules, name, module)
    return module.ModelCheckpoint


def test_a_checkpoint_with_the_callback_of_pytorch_lightning_loads(
    tmp_path, monkeypatch, models, folder, weights
):
    """The class is not there when the file is read, and its code could not be run."""
    path, trusted = tmp_path / "base.ckpt", set(torch.serialization.get_safe_globals())
    with monkeypatch.context() as patch:
        callback = lightning_callback(patch)
        kept = callback()
        kept.score = np.float64(0.5)
        content = {callback: {"best": kept, "score": np.float64(1.5)}}
        torch.save({"state_dict": weights, "callbacks": content}, path)
    assert "pytorch_lightning" not in sys.modules
    assert_same(load(models, path), folder)
    assert set(torch.serialization.get_safe_globals()) == trusted


class _Runs:
    """A pickle of it runs code when it is opened without care."""

    def __reduce__(self):
        return print, ("this was run",)


@pytest.mark.parametrize("content", [_Runs(), io.StringIO("x"), types.SimpleNamespace(a=1)])
def test_a_checkpoint_with_anything_else_is_not_opened(tmp_path, models, weights, content, capsys):
    path = tmp_path / "base.ckpt"
    torch.save({"state_dict": weights, "callbacks": content}, path, pickle_module=pickle)
    with pytest.raises(ValueError, match=r"holds more than tensors .* and is not opened"):
        load(models, path)
    assert "this was run" not in capsys.readouterr().out
