"""What diffusers and transformers must do for us, in every pair of their versions that is tried.

.ci/run has the newest versions; .ci/oldest runs this file with the oldest that pyproject.toml
admits.
"""

import os
import re
from pathlib import Path

import diffusers
import huggingface_hub
import pytest
import torch
import transformers
from animatediff_lightning.distill.cli.program import main
from animatediff_lightning.distill.files.cache import CACHE_VARIABLE
from animatediff_lightning.distill.miniature import shipped
from packaging.version import Version
from safetensors.torch import load_file

from . import distil_files, headless_ldm, random_models
from .video_files import numbered, write_lossless

pytestmark = pytest.mark.slow

PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"
CLIP = ["--prompt", "a red fish", "--frames", "2", "--steps", "1"]


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    """A folder for all files, and no hub."""
    folder = tmp_path_factory.mktemp("versions")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(folder / "cache"))
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        yield folder


@pytest.fixture(scope="module")
def models(folder):
    return random_models.ensure(folder)


def run(*arguments):
    assert main([str(a) for a in arguments]) == 0


@pytest.mark.parametrize("library", [diffusers, transformers])
def test_the_version_is_one_that_the_project_admits(library):
    floor = re.search(rf'"{library.__name__}>=([\d.]+),', PYPROJECT.read_text())[1]
    version = Version(library.__version__)
    assert version >= Version(floor)
    if os.environ.get("ADL_OLDEST"):
        assert version == Version(floor)


def test_the_miniature_makes_a_clip(folder):
    run("generate", *CLIP, "--out", folder / "a.png")
    assert (folder / "a.png").is_file()


@pytest.mark.parametrize("kind", ["folder", "file", "old file"])
def test_a_base_model_makes_a_clip(folder, models, kind):
    base = models.base
    if kind != "folder":
        base = headless_ldm.write(models.base, folder / f"{kind}.safetensors")
    if kind == "old file":
        weights = {k.replace(".text_model.", "."): t for k, t in load_file(base).items()}
        base = folder / "old.ckpt"
        torch.save({"state_dict": weights}, base)
    out = folder / f"{kind}.mp4"
    given = ["--base", base, "--config", models.base, "--motion-module", models.motion_module]
    run("generate", *CLIP, *given, "--out", out)
    assert out.is_file()


def test_a_motion_module_is_trained(folder):
    shipped_base = shipped.base("plain")
    write_lossless(folder / "videos" / "a.mkv", numbered(8))
    (folder / "videos" / "a.txt").write_text("a fish")
    out = folder / "trained.safetensors"
    small = ["--frames", 4, "--iterations", 1, "--batch", 1, "--warmup", 1]
    run("train-motion", "--data", folder / "videos", "--base", shipped_base, "--out", out, *small)
    assert out.is_file()


def test_a_motion_module_is_distilled(folder):
    clips = distil_files.write_pools(folder / "pools")
    config = distil_files.write_config(folder / "run.toml", folder / "run", clips, iterations=1)
    run("train", config, "--device", "cpu")
    assert (folder / "run" / "students" / "1step.safetensors").is_file()
