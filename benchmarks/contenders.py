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


def start_host(*flags):
    """Start the host with both packs and no files; returns our nodes by id."""
    host.start(comfyui_path(), *flags)
    logging.getLogger().setLevel(logging.WARNING)
    nodes = host.our_nodes()
    ade_pack()
    return nodes


def start(*flags):
    """Start the host, load both packs, make the random full-size files where they are missing.

    Returns the base MODEL and both contenders: name -> function(base, context) -> MODEL.
    """
    nodes = start_host(*flags)
    MODELS.mkdir(parents=True, exist_ok=True)
    if not (MODELS / MOTION_FILE).exists():
        host.random_motion_module(MODELS / MOTION_FILE, thin=False)
    if not (MODELS / "random_sd15.safetensors").exists():
        random_checkpoint.write(MODELS / "random_sd15.safetensors", "full")
    host.add_model_folder(MODELS)
    return host.load_base(MODELS / "random_sd15.safetensors"), {
        "ours": lambda base, context=None: _ours(nodes, base, context),
        "ade": _ade,
    }


def _ours(nodes, base, context=None):
    module, _ = nodes["ADL_LoadMotionModule"].execute(MOTION_FILE).result
    return nodes["ADL_ApplyMotionModule"].execute(base, module, context=context).result[0]


def ade_pack():
    """Return the peer's module, loaded by its path as the host does."""
    name = "animatediff_evolved"
    default = comfyui_path() / "custom_nodes" / "ComfyUI-AnimateDiff-Evolved"
    return sys.modules.get(name) or host.load_pack(os.environ.get("ADE_PATH", default), name)


def _ade(base, context=None):
    nodes = ade_pack().NODE_CLASS_MAPPINGS
    (motion,) = nodes["ADE_LoadAnimateDiffModel"]().load_motion_model(MOTION_FILE)
    (models,) = nodes["ADE_ApplyAnimateDiffModelSimple"]().apply_motion_model(motion)
    return nodes["ADE_UseEvolvedSampling"]().use_evolved_sampling(
        base, "sqrt_linear (AnimateDiff)", m_models=models, context_options=context
    )[0]


def our_context(nodes, length, overlap, schedule, fuse, closed_loop=False, **options):
    """Return our ADL_CONTEXT."""
    values = {"windows_per_call": 1, "where": "latents"} | options
    node = nodes["ADL_SlidingContext"]
    return node.execute(length, overlap, schedule, fuse, closed_loop, **values).result[0]


def ade_context(length, overlap, schedule, fuse, closed_loop=False):
    """Return the peer's CONTEXT_OPTIONS for the same windows."""
    nodes = ade_pack().NODE_CLASS_MAPPINGS
    if schedule == "static":
        node = nodes["ADE_StandardStaticContextOptions"]()
        return node.create_options(length, overlap, fuse)[0]
    if schedule == "uniform":
        node = nodes["ADE_StandardUniformContextOptions"]()
        return node.create_options(length, 1, overlap, fuse)[0]
    node = nodes["ADE_LoopedUniformContextOptions"]()
    return node.create_options(length, 1, overlap, closed_loop, fuse)[0]


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
