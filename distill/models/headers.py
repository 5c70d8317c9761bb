"""What a base model's configs and headers tell: what it is, its sizes, its places for motion."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers.models import UNet2DConditionModel

from ...motion_module import content, layout, refusals
from ...motion_module.checkpoint import MotionCheckpoint
from ..library_errors import one_sentence
from . import sd15_config
from .latent_size import pixels_per_latent

# what the keys of each model begin with in a checkpoint file
UNET = "model.diffusion_model."
TEXT_ENCODER = "cond_stage_model."
VAE = "first_stage_model."
_CONV_IN = UNET + "input_blocks.0.0.weight"
MODELS = ("unet", "vae", "text_encoder")  # folders of a base model
# bounds far beyond SD1.5's, within which a network is built before its weights are compared
_LARGEST_CONFIG, _LARGEST_NUMBER, _MOST_LAYERS, _LONGEST_LIST = 2**20, 2**20, 64, 64
_KERNELS = ("attn_implementation", "_attn_implementation")  # transformers' names


def empty_unet(base: Path) -> UNet2DConditionModel:
    """Return a base model's UNet without weights; ValueError where there is none at the path."""
    if not base.exists():
        raise ValueError(f"the base model {base} was not found; check its path.")
    config = base / "unet" / "config.json"
    if base.is_dir() and not config.is_file():
        raise ValueError(f"{base} has no unet/config.json; give a diffusers folder or a file.")
    if base.is_file():
        check_single_file(base)
    with one_sentence(base.name), torch.device("meta"):
        if base.is_dir():
            return UNet2DConditionModel.from_config(read_config(config))
        return UNet2DConditionModel.from_config(sd15_config.UNET)


def latent_factor(base: Path, configs: str | Path | None = None) -> int:
    """Return a base model's pixels per latent in each direction; nothing but a config is read.

    configs: a diffusers folder of them for a single file, None: SD1.5's.
    """
    folder = base if base.is_dir() else configs
    if folder is None:
        return pixels_per_latent(sd15_config.VAE)
    config = Path(folder) / "vae" / "config.json"
    if not config.is_file():
        raise ValueError(f"{folder} has no vae/config.json; give a diffusers folder or a file.")
    with one_sentence(f"{Path(folder).name}/vae"):
        return pixels_per_latent(read_config(config))


def read_config(file: Path) -> dict:
    """Return the config.json of a base model's part, read here: no library looks it up elsewhere.

    Raises ValueError for one that is no object, that asks for a network of absurd size, or for code
    from elsewhere.
    """
    if file.stat().st_size > _LARGEST_CONFIG:
        raise ValueError(f"{file.name} is larger than {_LARGEST_CONFIG} bytes")
    config = json.loads(file.read_text("utf-8"))
    if not isinstance(config, dict):
        raise ValueError(f"{file.name} holds no object")
    for name, value in config.items():
        numbers = value if isinstance(value, list) else [value]
        most = _MOST_LAYERS if "layers" in name else _LARGEST_NUMBER
        if len(numbers) > _LONGEST_LIST or any(isinstance(n, int) and n > most for n in numbers):
            raise ValueError(f"{file.name} has a {name} beyond {most}")
        if name in _KERNELS and "/" in str(value):
            raise ValueError(f"{file.name} names a kernel of the hub as {name}")
    return config


def check_fit(module: MotionCheckpoint, unet: UNet2DConditionModel, frames: int) -> None:
    """Raise ValueError where a motion module has no place in a UNet, or too few positions."""
    layout.check_fit(module.config, layout.sites(unet))
    if frames > module.config.max_frames:
        raise ValueError(
            f"{module.path.name} has positions for {module.config.max_frames} frames; lower frames "
            f"from {frames}."
        )


def check_configs(folder: str | Path, option: str = "--config") -> None:
    """Raise ValueError where a folder holds no configs; option: what the user named it by."""
    if not (Path(folder) / "model_index.json").is_file():
        raise ValueError(f"{folder} has no model_index.json; give a diffusers folder as {option}.")
    check_parts(Path(folder))


def check_parts(folder: Path) -> None:
    """Raise ValueError where the config of one of a base model's parts is unfit, see read_config.

    A part that is not there is not asked for.
    """
    for name in MODELS:
        file = folder / name / "config.json"
        if file.is_file():
            with one_sentence(f"{folder.name}/{name}"):
                read_config(file)


def check_single_file(path: Path) -> None:
    """Raise ValueError where a file's header tells of no full SD1.5 checkpoint; reads no weights.

    Formats that tell nothing before they are read are taken for one.
    """
    with refusals.naming(path):
        content.check_file(path)
        if not content.is_safetensors(path):
            return
        header, _ = content.read_header(path)
    check_keys(path, {key: tensor.shape for key, tensor in header.items()})


def check_keys(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ValueError where the keys and shapes of a file are not a full SD1.5 checkpoint's."""
    keys = [k.removeprefix("module.") for k in shapes]
    for fragment, kind in (
        ("conditioner.embedders.", "an SDXL checkpoint"),
        (TEXT_ENCODER + "model.", "a Stable Diffusion 2 checkpoint"),
        (".temporal_transformer.", "a motion module"),
    ):
        if any(fragment in k for k in keys):
            raise ValueError(f"{path.name} is {kind}; --base needs an SD1.5 checkpoint.")
    for prefix, kind in ((UNET, "UNet"), (TEXT_ENCODER, "text encoder"), (VAE, "VAE")):
        if not any(k.startswith(prefix) for k in keys):
            raise ValueError(
                f"{path.name} holds no {kind}; use a checkpoint with its {kind}, "
                "or a diffusers folder."
            )
    channels = [s[1] for k, s in shapes.items() if k.endswith(_CONV_IN) and len(s) > 1]
    if channels and channels[0] > sd15_config.UNET["in_channels"]:
        raise ValueError(f"{path.name} is an inpainting checkpoint; use a plain SD1.5 one.")
