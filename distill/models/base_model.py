"""Frozen base models f_i: an image UNet with its own text encoder, tokenizer and VAE.

AnimateDiff-Lightning section 3.3: F_i = f_i o m. Bases are read through diffusers, from a
diffusers folder or from a single-file SD1.5 checkpoint.
"""

import hashlib
import json
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar

import diffusers
import torch
import transformers
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from ..library_errors import one_sentence
from . import sd15_config, single_file
from .haar_vae import HaarVAE
from .headers import MODELS, check_configs, check_parts, check_single_file, read_config
from .latent_size import pixels_per_latent
from .tokenizer import load_tokenizer

logger = logging.getLogger(__name__)
_EARLIER_VAE = "PixelUnshuffleVAE"  # of the miniature until its latents were whitened
_OF_DECODER = ("decoder.", "post_quant_conv.")
PREDICTION_TYPES = ("epsilon", "v_prediction")
Vae: TypeAlias = AutoencoderKL | HaarVAE
Model = TypeVar("Model", UNet2DConditionModel, AutoencoderKL, CLIPTextModel)


@dataclass(frozen=True)
class BaseModel:
    """A frozen base model; `prediction_type` is diffusers' name for what its UNet predicts."""

    name: str
    unet: UNet2DConditionModel
    vae: Vae
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    prediction_type: str

    @property
    def latent_factor(self) -> int:
        """Pixels per latent in each direction (SD1.5: 8)."""
        return pixels_per_latent(self.vae.config)

    @property
    def latent_channels(self) -> int:
        """Channels of a latent (SD1.5: 4)."""
        return self.unet.config["in_channels"]

    @property
    def default_size(self) -> int:
        """Width and height in pixels that the UNet was trained for (SD1.5: 512)."""
        return self.unet.config["sample_size"] * self.latent_factor

    @property
    def latent_scale(self) -> Tensor:
        """What the VAE's latents are multiplied by for the UNet (SD1.5: 0.18215).

        Of shape (1, 1, 1), or (channels, 1, 1) where the VAE's config has `latents_std`.
        """
        std = self.vae.config.get("latents_std") or [1.0]
        return self.vae.config["scaling_factor"] / _of_channels(std)

    @property
    def latent_shift(self) -> Tensor:
        """What is taken from the VAE's latents before they are scaled (SD1.5: 0), shaped alike."""
        config = self.vae.config
        return _of_channels(config.get("latents_mean") or [config.get("shift_factor") or 0.0])

    def latent_space(self) -> str:
        """Return a digest of what pixels are encoded to: the VAE's encoder, in float16, and scale.

        Base models of one latent space can share clips; decoders may differ.
        """
        config = self.vae.config
        scale = (config["scaling_factor"], config.get("shift_factor") or 0.0)
        channels = [config.get(k) for k in ("latents_mean", "latents_std") if config.get(k)]
        digest = hashlib.sha256(repr((*scale, *channels)).encode())
        for name, tensor in sorted(self.vae.state_dict().items()):
            if not name.startswith(_OF_DECODER):
                digest.update(tensor.half().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    @property
    def device(self) -> torch.device:
        return self.unet.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the UNet computes in; the VAE's may differ."""
        return self.unet.dtype

    @property
    def max_tokens(self) -> int:
        """Tokens that the text encoder reads at once, with start and end (SD1.5: 77)."""
        return self.text_encoder.config.max_position_embeddings


def load_base(
    path: str | Path,
    *,
    config: str | Path | None = None,
    tokenizer: str | Path | None = None,
    prediction_type: str | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> BaseModel:
    """Load a frozen base model from a diffusers folder or a single-file SD1.5 checkpoint.

    For a single file, `config` is a diffusers folder of configs (default: SD1.5's), `tokenizer` a
    folder with vocab.json and merges.txt (default: from the hub or its local cache), and
    `prediction_type` overrides the scheduler config. Raises ValueError with one sentence for a
    missing, damaged or unfit file.
    """
    path = Path(path)
    if path.is_dir():
        base = _load_folder(path, tokenizer, prediction_type)
    elif path.is_file():
        base = _load_file(path, config, tokenizer, prediction_type)
    else:
        raise ValueError(f"the base model {path} was not found.")
    _check(base)
    logger.debug("%s predicts %s; %s on %s", path, base.prediction_type, dtype, device)
    return _frozen(base, torch.device(device), dtype)


def quiet_libraries() -> None:
    """Turn off the loading bars of diffusers and transformers."""
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()


def encode_prompt(base: BaseModel, prompt: str) -> Tensor:
    """Return the base's own embedding of a prompt, (1, tokens, width), SD1.5: (1, 77, 768)."""
    return encode_prompts(base, [prompt])


@torch.no_grad()  # not inference_mode: training saves the embeddings for its backward
def encode_prompts(base: BaseModel, prompts: Sequence[str]) -> Tensor:
    """Return the base's own embedding of prompts, shape (prompts, tokens, width).

    The last hidden state behind the final norm, padded and cut to the encoder's length. Brackets
    are plain text, as in captions; prompt.py reads ComfyUI's syntax.
    """
    ids = base.tokenizer(
        list(prompts),
        padding="max_length",
        max_length=base.max_tokens,
        truncation=True,
        return_tensors="pt",
    ).input_ids
    return base.text_encoder(ids.to(base.device)).last_hidden_state.to(base.dtype)


def _load_folder(
    path: Path, tokenizer: str | Path | None, prediction_type: str | None
) -> BaseModel:
    for name in MODELS:
        if not (path / name / "config.json").is_file():
            raise ValueError(
                f"{path.name} lacks {name}/config.json; "
                "give a diffusers folder or a checkpoint file."
            )
    check_parts(path)
    return BaseModel(
        name=path.name,
        unet=_load_model(UNet2DConditionModel, path, "unet"),
        vae=_load_vae(path),
        text_encoder=_load_model(CLIPTextModel, path, "text_encoder"),
        tokenizer=load_tokenizer(tokenizer or path / "tokenizer"),
        prediction_type=prediction_type or _scheduled_prediction_type(path),
    )


def _load_vae(path: Path) -> Vae:
    with one_sentence(f"{path.name}/vae"):
        config = read_config(path / "vae" / "config.json")
    if config.get("_class_name") == _EARLIER_VAE:
        raise ValueError(
            f"{path.name} is of an earlier version of the miniature, whose latents were others; "
            "build it again in an empty folder."
        )
    if config.get("_class_name") == HaarVAE.__name__:
        with one_sentence(f"{path.name}/vae"):
            return HaarVAE.from_config(config)  # it has no weights
    return _load_model(AutoencoderKL, path, "vae")


def _load_model(kind: type[Model], path: Path, name: str) -> Model:
    with one_sentence(f"{path.name}/{name}"):
        # both libraries return a pair for this option, of which their types know nothing
        loaded: tuple[Model, dict[str, list[str]]] = kind.from_pretrained(  # type: ignore[assignment]
            path, subfolder=name, output_loading_info=True
        )
    model, report = loaded
    # both libraries would fill what is missing with random weights and only log it
    if report["missing_keys"]:
        raise ValueError(
            f"{path.name}/{name} lacks {sorted(report['missing_keys'])[0]}; download it again."
        )
    return model


def _of_channels(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)[:, None, None]


def _scheduled_prediction_type(path: Path) -> str:
    file = path / "scheduler" / "scheduler_config.json"
    if not file.is_file():
        return "epsilon"
    with one_sentence(f"{path.name}/scheduler"):
        return json.loads(file.read_text(encoding="utf-8")).get("prediction_type", "epsilon")


def _load_file(
    path: Path,
    config: str | Path | None,
    tokenizer: str | Path | None,
    prediction_type: str | None,
) -> BaseModel:
    check_single_file(path)
    if config is not None:
        check_configs(config)
    own = Path(config) / "tokenizer" if config is not None else None
    if tokenizer is None and own is not None and own.is_dir():
        tokenizer = own
    words = load_tokenizer(tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        configs = Path(config) if config is not None else sd15_config.write_configs(Path(folder))
        unet, vae, text_encoder = single_file.load_models(path, configs)
        prediction_type = prediction_type or _scheduled_prediction_type(configs)
    return BaseModel(path.stem, unet, vae, text_encoder, words, prediction_type)


def _check(base: BaseModel) -> None:
    if base.prediction_type not in PREDICTION_TYPES:
        raise ValueError(
            f"{base.name} predicts {base.prediction_type!r}, which is not supported; "
            f"use a base model that predicts {' or '.join(PREDICTION_TYPES)}."
        )
    channels = base.vae.config["latent_channels"]
    if base.latent_channels != channels:
        raise ValueError(
            f"the UNet of {base.name} takes {base.latent_channels} channels, but its VAE makes "
            f"{channels}; inpainting models are not supported, use a plain SD1.5 model."
        )


def _frozen(base: BaseModel, device: torch.device, dtype: torch.dtype) -> BaseModel:
    # some SD1.5 VAEs overflow in float16
    vae_dtype = torch.float32 if dtype == torch.float16 else dtype
    models: list[tuple[torch.nn.Module, torch.dtype]] = [
        (base.unet, dtype),
        (base.text_encoder, dtype),
        (base.vae, vae_dtype),
    ]
    for model, its_dtype in models:
        model.to(device, its_dtype).eval().requires_grad_(False)
    return base
