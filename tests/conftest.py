"""What the tests share: thin models, and the ComfyUI hosts on this machine."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from animatediff_lightning.motion_module.config import MotionModuleConfig
from animatediff_lightning.motion_module.module import MotionModule

# thin models gain nothing from more threads, and lose tenfold where the cores are shared
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def thin_config():
    """Factory of configs with AnimateDiff's structure over any channels; two levels by default."""

    def make(channels=(32, 64), layers=1, mid=True, **options) -> MotionModuleConfig:
        return MotionModuleConfig(
            down_blocks=tuple((c,) * layers for c in channels),
            mid_block=(channels[-1],) if mid else (),
            up_blocks=tuple((c,) * (layers + 1) for c in reversed(channels)),
            **{"max_frames": 16, "num_heads": 4, "norm_groups": 8} | options,
        )

    return make


@pytest.fixture(scope="session")
def random_module():
    """Factory of motion modules whose every weight, proj_out and norms too, is random."""

    def make(config: MotionModuleConfig, seed: int = 0) -> MotionModule:
        module = MotionModule(config)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                scale = parameter.shape[-1] ** -0.5 if parameter.ndim == 2 else 0.2
                offset = float("norm" in name and name.endswith("weight"))
                parameter.copy_(offset + scale * noise)
        return module.eval().requires_grad_(False)

    return make


@pytest.fixture(scope="session")
def thin_unet():
    """Factory of diffusers UNets: attention on all levels but the last, as in SD1.5."""

    from diffusers import UNet2DConditionModel  # slow to import, and not in a ComfyUI host

    def make(channels=(32, 64), layers=1, seed: int = 0) -> UNet2DConditionModel:
        torch.manual_seed(seed)
        attended = len(channels) - 1
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=channels,
            layers_per_block=layers,
            down_block_types=("CrossAttnDownBlock2D",) * attended + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * attended,
            cross_attention_dim=16,
            attention_head_dim=4,
            norm_num_groups=8,
        )
        return unet.eval().requires_grad_(False)

    return make


@dataclass(frozen=True)
class Host:
    """A ComfyUI folder and the interpreter that has its packages."""

    folder: Path
    python: str


def find_hosts() -> list[Host]:
    """Return the hosts in COMFYUI_PATH (":" between), else comfy-cli's default and beside it."""
    if os.environ.get("COMFYUI_PATH"):
        folders = [Path(p) for p in os.environ["COMFYUI_PATH"].split(":")]
    else:
        folders = sorted((Path.home() / "comfy").glob("ComfyUI*"))
    hosts = []
    for folder in folders:
        python = os.environ.get("COMFYUI_PYTHON") or str(folder / ".venv" / "bin" / "python")
        if (folder / "main.py").is_file() and Path(python).exists():
            hosts.append(Host(folder, python))
    return hosts


HOSTS = find_hosts()
NO_HOST = (
    "NO COMFYUI FOUND: the nodes were not tested; set COMFYUI_PATH (and COMFYUI_PYTHON), "
    "or install ComfyUI with comfy-cli"
)


def pytest_terminal_summary(terminalreporter):
    """Say loudly whether the host tests could run."""
    if not HOSTS:
        terminalreporter.section(NO_HOST, red=True, bold=True)


@pytest.fixture(scope="session", params=HOSTS or [None], ids=lambda h: h.folder.name if h else "-")
def comfyui(request):
    """One host after the other; skips where this machine has none."""
    if request.param is None:
        pytest.skip(NO_HOST)
    return request.param


@pytest.fixture(scope="session")
def thin_checkpoint():
    """Path of an SD1.5 checkpoint with a thin UNet and random weights, made once a machine."""
    cache = Path.home() / ".cache" / "animatediff-lightning" / "tests"
    path = cache / "thin.safetensors"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        script = Path(__file__).parent / "host" / "random_checkpoint.py"
        command = [HOSTS[0].python, script, HOSTS[0].folder, path, "thin"]
        subprocess.run(command, check=True, stdout=sys.stderr)
    return path
