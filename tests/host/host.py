"""Helpers for scripts that run inside a ComfyUI interpreter: the host, our pack, a run of each.

Usage of a script: python SCRIPT COMFYUI_FOLDER MODELS_FOLDER; see tests/test_host_in_process.py.
"""

import asyncio
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

PACK = Path(__file__).resolve().parents[2]
MODE_VARIABLE = "ADL_HOST_MODE"  # "dynamic" emulates dynamic VRAM; anything else is as it starts


def start(comfyui, *flags):
    """Make the host importable, on the CPU unless `flags` say otherwise."""
    sys.path.insert(0, str(Path(comfyui).resolve()))
    # attention as on most GPUs; that of a CPU cannot be compiled in one graph
    sys.argv = [sys.argv[0], *(flags or ("--cpu", "--use-pytorch-cross-attention"))]
    import comfy.options

    comfy.options.enable_args_parsing()
    if os.environ.get(MODE_VARIABLE) == "dynamic":
        import dynamic_vram

        dynamic_vram.emulate()
    import torch

    torch.set_grad_enabled(False)


def load_pack(folder=PACK, name="custom_nodes_animatediff_lightning"):
    """Import a custom node folder by its path, as ComfyUI does; returns the module."""
    spec = importlib.util.spec_from_file_location(
        name, Path(folder) / "__init__.py", submodule_search_locations=[str(folder)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def our_nodes():
    """Return our node classes by id, through the extension entry point."""
    pack = load_pack()
    extension = asyncio.run(pack.comfy_entrypoint())
    return {n.define_schema().node_id: n for n in asyncio.run(extension.get_node_list())}


def import_seconds():
    """Return how long our nodes take to import once the host itself is there."""
    import time

    for name in ("comfy.sd", "comfy.samplers", "comfy_api.latest", "comfy_extras.nodes_video"):
        importlib.import_module(name)
    start = time.perf_counter()
    our_nodes()
    return time.perf_counter() - start


def import_seconds_of_a_new_process():
    """Return the same, measured in another process of this host."""
    import folder_paths

    script = "import sys, host; host.start(sys.argv[1]); print(host.import_seconds())"
    command = [sys.executable, "-c", script, folder_paths.base_path]
    done = subprocess.run(
        command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
    )
    return float(done.stdout.split()[-1])


def submodule(name):
    """Return a module of the loaded pack, e.g. submodule("motion_module.checkpoint")."""
    return importlib.import_module(f"custom_nodes_animatediff_lightning.{name}")


def add_model_folder(models):
    """Let the host find motion modules in `models`, and read the list anew."""
    import folder_paths

    folder_paths.add_model_folder_path("animatediff_models", str(models))
    folder_paths.filename_list_cache.clear()


def load_base(path, model_options=None):
    """Return the MODEL of a checkpoint, through the core's loader."""
    import comfy.sd

    model, *_ = comfy.sd.load_checkpoint_guess_config(
        str(path), output_vae=False, output_clip=False, model_options=model_options or {}
    )
    return model


def random_motion_module(path, seed=0, thin=True, **overrides):
    """Write a motion module of random weights in the released comfyui layout."""
    import torch

    config_class = submodule("motion_module.config").MotionModuleConfig
    if thin:
        overrides = {
            "down_blocks": ((320,),) * 4,
            "mid_block": (320,),
            "up_blocks": ((320,) * 2,) * 4,
        } | overrides
    torch.manual_seed(seed)
    module = submodule("motion_module.module").MotionModule(config_class(**overrides))
    submodule("motion_module.checkpoint").save(module.half(), path)
    return path


def conditioning(seed=0, scale=1.0):
    """Return a random CONDITIONING of one prompt."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(1, 77, 768, generator=generator) * scale, {}]]


def sample(
    model,
    sigmas,
    frames=16,
    seed=0,
    cfg=1.0,
    size=8,
    sampler="euler",
    callback=None,
    start=None,
    noise=None,
    positive=None,
    negative=None,
    control=None,
    more=(),
):
    """Run the core's guider and sampler; returns latents (frames, 4, size, size).

    `start` is the latent to start from, `noise` replaces the seed's, `positive` and
    `negative` the embeddings; `control` is put on both conditionings, `more` is joined to the
    positive one.
    """
    import comfy.sample
    import comfy.samplers
    import torch

    latent = torch.zeros(frames, 4, size, size) if start is None else start
    noise = comfy.sample.prepare_noise(latent, seed) if noise is None else noise
    conds = conditioning(1), conditioning(2)
    if positive is not None:
        conds[0][0][0] = positive
    if negative is not None:
        conds[1][0][0] = negative
    if control is not None:
        for cond in conds:
            cond[0][1]["control"] = control
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds([*conds[0], *more], conds[1])
    guider.set_cfg(cfg)
    return guider.sample(
        noise,
        latent,
        comfy.samplers.sampler_object(sampler),
        sigmas,
        callback=callback,
        disable_pbar=True,
        seed=seed,
    )


def unet_hooks(model):
    """Return how many forward hooks the UNet of a MODEL holds."""
    return sum(len(m._forward_hooks) for m in model.model.diffusion_model.modules())
