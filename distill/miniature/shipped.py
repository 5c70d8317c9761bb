"""The miniature's trained weights, as they ship with the package.

Shared parts are stored once; a base model is assembled as an ordinary diffusers folder in the
cache when it is first asked for.
"""

import hashlib
import json
from functools import lru_cache
from pathlib import Path

from safetensors.torch import load_file

from ...motion_module import checkpoint
from ..files.cache import cache_folder, made_once
from ..models.haar_vae import HaarVAE
from ..models.text_keys import as_loaded
from . import models, styles

WEIGHTS = Path(__file__).with_name("weights")
STEPS = 32  # how the undistilled motion module is sampled best
STUDENTS = (8, 4, 2, 1)  # step counts of the distilled motion modules
DEFAULT_STUDENT = 4
VAE_CONFIG = "vae.json"
TEXT_ENCODER = "text_encoder.safetensors"
MOTION_MODULE = "motion_module.safetensors"


def base(style: str = styles.F0) -> Path:
    """Return the diffusers folder of a style's base model; ValueError for an unknown style."""
    if style not in styles.STYLES:
        names = ", ".join(styles.STYLES)
        raise ValueError(f"the miniature has no style {style!r}; its styles are {names}.")
    folder = cache_folder() / f"miniature-{_digest()}" / style
    return made_once(folder, lambda temporary: _assemble(temporary, style))


def motion_module() -> Path:
    """Return the motion module's file."""
    return WEIGHTS / MOTION_MODULE


def student(steps: int) -> Path:
    """Return the file of the motion module that was distilled for so many steps."""
    return WEIGHTS / f"{steps}step.safetensors"


def motion_module_for(steps: int | None, sampler: str = "euler", cfg: float | None = None) -> Path:
    """Return the file to draw with: a student's where the steps are its own, else the undistilled.

    steps, cfg: None where none are asked for; guidance and other samplers are not for students.
    """
    file = student(steps or DEFAULT_STUDENT)
    fits = sampler == "euler" and cfg in (None, 1) and file.is_file()
    return file if fits else motion_module()


def cfg() -> float:
    """Return the guidance under which the motion module was found to be best."""
    return float(checkpoint.load(motion_module()).metadata["cfg"])


def _assemble(folder: Path, style: str) -> None:
    unet, encoder = models.build_unet(), models.build_text_encoder()
    unet.load_state_dict(load_file(WEIGHTS / f"{style}.safetensors"))
    encoder.load_state_dict(as_loaded(encoder, load_file(WEIGHTS / TEXT_ENCODER)))
    vae = HaarVAE.from_config(json.loads((WEIGHTS / VAE_CONFIG).read_text()))
    models.write_base(folder, unet, encoder, vae)


@lru_cache(maxsize=1)
def _digest() -> str:
    digest = hashlib.sha256((WEIGHTS / VAE_CONFIG).read_bytes())
    for name in (*styles.STYLES, TEXT_ENCODER.removesuffix(".safetensors")):
        digest.update((WEIGHTS / f"{name}.safetensors").read_bytes())
    return digest.hexdigest()[:12]
