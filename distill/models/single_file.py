"""Reads a base model from one SD1.5 checkpoint file in the original (LDM) layout.

The file is read once and safely. diffusers converts the UNet and the VAE; the text encoder's keys
need only a prefix, which differs among files and among versions of transformers.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import torch
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from ...motion_module import files, refusals
from ..library_errors import one_sentence
from .headers import TEXT_ENCODER, UNET, VAE, check_keys
from .text_keys import as_loaded, bare

Converted = TypeVar("Converted", UNet2DConditionModel, AutoencoderKL)
# what the models consist of; files of trainers keep averages and losses beside it
_PARTS_OF_UNET = ("time_embed.", "input_blocks.", "middle_block.", "output_blocks.", "out.")
_PARTS_OF_VAE = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
_TRANSFORMER = TEXT_ENCODER + "transformer."


def load_models(
    path: Path, configs: Path
) -> tuple[UNet2DConditionModel, AutoencoderKL, CLIPTextModel]:
    """Return the UNet, the VAE and the text encoder of a checkpoint file.

    configs: a diffusers folder of them. Raises ValueError with one sentence for a file that is
    damaged, is of another kind or lacks weights.
    """
    tensors = _read(path)
    return (
        _convert(UNet2DConditionModel, path, _under(tensors, UNET, _PARTS_OF_UNET), configs),
        _convert(AutoencoderKL, path, _under(tensors, VAE, _PARTS_OF_VAE), configs),
        _text_encoder(path, tensors, configs),
    )


def _read(path: Path) -> dict[str, Tensor]:
    with refusals.naming(path):
        tensors, _ = files.read(path, "base model")
    check_keys(path, {k: tuple(t.shape) for k, t in tensors.items()})
    return tensors


def _under(tensors: Mapping[str, Tensor], prefix: str, parts: tuple[str, ...]) -> dict[str, Tensor]:
    return {k: t for k, t in tensors.items() if k.startswith(tuple(prefix + p for p in parts))}


def _convert(
    kind: type[Converted], path: Path, tensors: dict[str, Tensor], configs: Path
) -> Converted:
    name = "unet" if kind is UNet2DConditionModel else "vae"
    with one_sentence(f"{configs.name}/{name}"), torch.device("meta"):
        config = kind.load_config(configs, subfolder=name)
        expected = len(kind.from_config(config).state_dict())  # type: ignore[arg-type, union-attr]
    # diffusers would leave them without weights or with random ones; a key each in both layouts
    if len(tensors) < expected:
        label = "UNet" if name == "unet" else "VAE"
        raise ValueError(
            f"{path.name} lacks {expected - len(tensors)} of the {expected} weights of its "
            f"{label}; download it again."
        )
    with one_sentence(path.name):
        # a state dict is allowed, which its types do not tell
        return kind.from_single_file(tensors, config=str(configs), subfolder=name)  # type: ignore[arg-type]


def _text_encoder(path: Path, tensors: Mapping[str, Tensor], configs: Path) -> CLIPTextModel:
    with one_sentence(f"{configs.name}/text_encoder"), torch.device("meta"):
        config = CLIPTextConfig.from_pretrained(configs, subfolder="text_encoder")
        empty = CLIPTextModel(config)
    ours = {
        bare(k.removeprefix(_TRANSFORMER)): t
        for k, t in tensors.items()
        if k.startswith(_TRANSFORMER)
    }
    missing = sorted(k for k in empty.state_dict() if bare(k) not in ours)
    if missing:
        raise ValueError(f"{path.name} lacks {missing[0]} of its text encoder; download it again.")
    # the file's position_ids are not among them: positions are counted, not stored
    weights = as_loaded(empty, ours)
    with one_sentence(path.name):
        return CLIPTextModel.from_pretrained(None, config=config, state_dict=weights)
