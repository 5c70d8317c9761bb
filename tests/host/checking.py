"""What the scripts of checks share: the graph of our nodes, comparisons, and the runner."""

import contextlib
import json
import os
import sys
import tempfile
import traceback
from pathlib import Path

import host

MOTION_FILE = "animatediff_lightning_4step_thin.safetensors"
OTHER_FILE = "x_lightning_2step.safetensors"


class CannotCheckError(Exception):
    """This host lacks what a check compares with; says what."""


def close(a, b):
    """Return the relative difference of two tensors."""
    return float((a - b).norm() / b.norm())


def equal(a, b):
    import torch

    return torch.equal(a, b)


def refusal(function, *args, **kwargs):
    """Return the sentence of the ValueError that a call must raise."""
    try:
        function(*args, **kwargs)
    except ValueError as error:
        sentence = str(error)
        assert "\n" not in sentence, sentence
        assert sentence.endswith("."), sentence
        return sentence
    raise AssertionError("nothing was refused")


@contextlib.contextmanager
def told():
    """Give the list of the sentences that the pack tells the user meanwhile."""
    import logging

    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    handler.addFilter(lambda record: record.getMessage().startswith("[AnimateDiff-Lightning]"))
    logging.getLogger().addHandler(handler)
    try:
        yield messages
    finally:
        logging.getLogger().removeHandler(handler)


def outputs(node, *args):
    """Run a core node of the old or the new node interface; returns all its outputs."""
    if hasattr(node, "execute") and hasattr(node, "define_schema"):
        return node.execute(*args).result
    return getattr(node(), node.FUNCTION)(*args)


def sample_with(guider, sigmas, frames=4, noise=None):
    """Sample an empty latent with a guider of the core, from seed 0 unless `noise` is given."""
    import comfy.sample
    import comfy.samplers
    import torch

    latent = torch.zeros(frames, 4, 8, 8)
    noise = comfy.sample.prepare_noise(latent, 0) if noise is None else noise
    euler = comfy.samplers.sampler_object("euler")
    return guider.sample(noise, latent, euler, sigmas, disable_pbar=True, seed=0)


def window_by_window(windows, make, **kwargs):
    """Return the mean over windows, each a list of frames, of what each gives by itself.

    `make(window)` returns the MODEL, the sigmas and the settings of host.sample for a window.
    """
    import torch

    frames = 1 + max(map(max, windows))
    noise = torch.randn(frames, 4, 8, 8, generator=torch.manual_seed(0))
    total, count = torch.zeros(frames, 4, 8, 8), torch.zeros(frames, 1, 1, 1)
    for window in windows:
        model, sigmas, settings = make(window)
        settings = {"frames": len(window), "noise": noise[window]} | kwargs | settings
        total[window] += host.sample(model, sigmas, **settings)
        count[window] += 1
    return total / count


def compiled(model):
    """Put the core's TorchCompileModel behind a MODEL.

    What could go wrong are Dynamo's guards, which no backend changes: ADL_COMPILE_BACKEND=inductor
    also compiles (minutes).
    """
    from unittest import mock

    import torch
    import torch._dynamo
    from comfy_extras.nodes_torch_compile import TorchCompileModel

    # past the limit Dynamo runs eagerly, which would hide a missing guard
    torch._dynamo.config.recompile_limit = 256
    torch._dynamo.config.accumulated_recompile_limit = 4096
    backend, compile_ = os.environ.get("ADL_COMPILE_BACKEND", "eager"), torch.compile
    with mock.patch("torch.compile", lambda **kw: compile_(**(kw | {"backend": backend}))):
        return outputs(TorchCompileModel, model, "inductor")[0]


def unload():
    """Let the host put every model away."""
    import comfy.model_management

    comfy.model_management.unload_all_models()


@contextlib.contextmanager
def small_budget(share=0.1):
    """Let the host load that share of each model's weights; on a CPU it would load them all."""
    from comfy.model_management import LoadedModel

    whole = LoadedModel.model_load

    def model_load(loaded, lowvram_model_memory=0, **kwargs):  # noqa: ARG001
        return whole(loaded, loaded.model_memory() * share, **kwargs)

    LoadedModel.model_load = model_load
    unload()
    try:
        yield
    finally:
        LoadedModel.model_load = whole
        unload()


def no_paging():
    """Leave a check out where weights are paged by need, which wants a GPU."""
    if os.environ.get(host.MODE_VARIABLE) == "dynamic":
        raise CannotCheckError("aimdo's paging of weights wants a GPU; only its Python side runs")


class Graph:
    """Our nodes over a thin base model with random weights."""

    def start(self, comfyui, models, motion_folder):
        host.start(comfyui)
        self.import_seconds = host.import_seconds()
        self.nodes = host.our_nodes()
        self.models = Path(models)
        host.random_motion_module(Path(motion_folder) / MOTION_FILE, seed=0)
        host.random_motion_module(Path(motion_folder) / OTHER_FILE, seed=1)
        host.add_model_folder(motion_folder)
        self.base = host.load_base(self.models / "thin.safetensors")

    def load(self, name=MOTION_FILE):
        return self.nodes["ADL_LoadMotionModule"].execute(name).result[0]

    def weights(self, motion_module=None):
        """Return the weights of a motion module in which they run beside the base."""
        placement = host.submodule("nodes.host.placement").Placement.beside(self.base)
        return (motion_module or self.load()).weights(placement).model

    def apply(self, model=None, name=MOTION_FILE, **kwargs):
        model = self.base if model is None else model
        node = self.nodes["ADL_ApplyMotionModule"]
        return node.execute(model, self.load(name), **kwargs).result[0]

    def sigmas(self, model, steps=4, start_step=0):
        return self.nodes["ADL_LightningScheduler"].execute(model, steps, start_step).result[0]

    def core_sigmas(self, model, steps=4, scheduler="simple"):
        import comfy.samplers

        sampling = model.get_model_object("model_sampling")
        return comfy.samplers.calculate_sigmas(sampling, scheduler, steps)

    def bases_of_every_dtype(self):
        """Yield (base, dtype that it computes in, bar): as the host would here, and as on a GPU.

        On a CPU the host computes in float32 whatever the weights are.
        """
        import torch

        for dtype, bar in ((torch.float16, 0.03), (torch.bfloat16, 0.2)):
            for compute in (torch.float32, dtype):
                base = host.load_base(self.models / "thin.safetensors", {"dtype": dtype})
                base.model.manual_cast_dtype = None if compute == dtype else compute
                yield base, compute, bar

    def plain(self, **kwargs):
        """Sample the base model without motion."""
        return host.sample(self.base, self.core_sigmas(self.base, 2), **kwargs)

    def ours(self, model=None, **kwargs):
        """Sample with motion."""
        model = self.apply() if model is None else model
        return host.sample(model, self.sigmas(model, 2), **kwargs)


def main(graph, functions):
    """Run every check_* function, or those named on the command line; one JSON line each."""
    comfyui, models, *only = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        graph.start(comfyui, models, folder)
        for name, function in list(functions.items()):
            if name.startswith("check_") and (not only or name in only):
                lack = None
                try:
                    function()
                    result = "ok"
                except CannotCheckError as error:
                    result, lack = "not made", str(error)
                except Exception:
                    result = traceback.format_exc()
                print(json.dumps({"check": name, "result": result, "lack": lack}), flush=True)
