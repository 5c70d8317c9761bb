"""What the scripts of checks share: the graph of our nodes, comparisons, and the runner."""

import json
import sys
import tempfile
import traceback
from pathlib import Path

import host

MOTION_FILE = "animatediff_lightning_4step_thin.safetensors"
OTHER_FILE = "x_lightning_2step.safetensors"


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
                try:
                    function()
                    result = "ok"
                except Exception:
                    result = traceback.format_exc()
                print(json.dumps({"check": name, "result": result}), flush=True)
