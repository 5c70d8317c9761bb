"""Ours and ComfyUI-AnimateDiff-Evolved (ADE) in one ComfyUI, behind one signature.

Runs in a ComfyUI interpreter. Folders come from the environment: COMFYUI_PATH (the host),
ADE_PATH (a checkout of the peer, default COMFYUI_PATH/custom_nodes/ComfyUI-AnimateDiff-Evolved),
ADL_BENCH_MODELS (where random files are made once, default ~/.cache/animatediff-lightning/bench).
"""

import logging
import os
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "host"))
import host
import random_checkpoint

MODELS = Path(
    os.environ.get("ADL_BENCH_MODELS", Path.home() / ".cache" / "animatediff-lightning" / "bench")
)
MOTION_FILE = "random_v2.safetensors"


def comfyui_path():
    """Return the host's folder: COMFYUI_PATH, else comfy-cli's default."""
    default = str(Path.home() / "comfy" / "ComfyUI")
    return Path(os.environ.get("COMFYUI_PATH", default).split(":")[0])


def start(*flags):
    """Start the host, load both packs, make the random full-size files where they are missing.

    Returns the base MODEL and both contenders: name -> function(base) -> MODEL with motion.
    """
    host.start(comfyui_path(), *flags)
    logging.getLogger().setLevel(logging.WARNING)
    nodes = host.our_nodes()
    MODELS.mkdir(parents=True, exist_ok=True)
    if not (MODELS / MOTION_FILE).exists():
        host.random_motion_module(MODELS / MOTION_FILE, thin=False)
    if not (MODELS / "random_sd15.safetensors").exists():
        random_checkpoint.write(MODELS / "random_sd15.safetensors", "full")
    host.add_model_folder(MODELS)
    return host.load_base(MODELS / "random_sd15.safetensors"), {
        "ours": lambda base: _ours(nodes, base),
        "ade": _ade,
    }


def _ours(nodes, base):
    module, _ = nodes["ADL_LoadMotionModule"].execute(MOTION_FILE).result
    return nodes["ADL_ApplyMotionModule"].execute(base, module).result[0]


def _ade(base):
    default = comfyui_path() / "custom_nodes" / "ComfyUI-AnimateDiff-Evolved"
    ade = host.load_pack(os.environ.get("ADE_PATH", default), name="animatediff_evolved")
    nodes = ade.NODE_CLASS_MAPPINGS
    (motion,) = nodes["ADE_LoadAnimateDiffModel"]().load_motion_model(MOTION_FILE)
    (models,) = nodes["ADE_ApplyAnimateDiffModelSimple"]().apply_motion_model(motion)
    evolved = nodes["ADE_UseEvolvedSampling"]()
    return evolved.use_evolved_sampling(base, "sqrt_linear (AnimateDiff)", m_models=models)[0]


def trailing_sigmas(steps):
    """Return the Lightning sigmas."""
    return host.submodule("samplers.schedule").sigmas(steps)


def machine():
    """Return a line that names the machine: processor, cores, torch and host versions."""
    import comfyui_version
    import torch

    if torch.cuda.is_available():
        processor = torch.cuda.get_device_name()
    else:
        text = Path("/proc/cpuinfo").read_text()
        found = re.search(r"model name\s*: (.*)", text)
        processor = f"{found.group(1) if found else 'CPU'}, {os.cpu_count()} cores"
    return f"{processor}; torch {torch.__version__}; ComfyUI {comfyui_version.__version__}"
