"""Plain and motion runs on one checkpoint, in every order: none may change what another gives.

    PYTHON_OF_COMFYUI tests/host/order_checks.py COMFYUI_FOLDER MODELS_FOLDER [CHECK ...]

A host with dynamic VRAM keeps buffers by their path and writes them back later, so a checkpoint
that was loaded before counts: every order starts from one of its own.
"""

from functools import cache

import host
from checking import Graph, close, equal, main, small_budget, unload

GRAPH = Graph()
ORDERS = ("plain motion motion plain", "motion plain motion", "motion other plain motion lora")
STEPS, FRAMES = 4, 2
LORA_FILE = "lora.safetensors"


def fresh():
    """Return a MODEL of the checkpoint that no run has touched."""
    return host.load_base(GRAPH.models / "thin.safetensors")


def graph_on(base):
    """Return the MODELs of a graph over a base: without motion, with two modules, with a LoRA."""
    import checking

    module = GRAPH.load()
    patches = {
        f"{name}": ("diff", (weight.detach() * 0 + 0.01,))
        for name, weight in list(GRAPH.weights(module).named_parameters())[:8]
    }
    with_lora = host.submodule("nodes.host.motion_module").WithMotionLora
    lora = with_lora(module.file, None, below=module, patches=patches, strength=1.0)
    apply = GRAPH.nodes["ADL_ApplyMotionModule"].execute
    return {
        "plain": base,
        "motion": apply(base, module).result[0],
        "other": GRAPH.apply(base, checking.OTHER_FILE),
        "lora": apply(base, lora).result[0],
    }


def run(name, model):
    values = GRAPH.core_sigmas(model, STEPS) if name == "plain" else GRAPH.sigmas(model, STEPS)
    return host.sample(model, values, frames=FRAMES)


@cache
def reference(name):
    """Return what a run gives that is the first and only one on its checkpoint."""
    return run(name, graph_on(fresh())[name])


def differences(between=lambda: None):
    """Return how far every run of every order is from the first of its kind."""
    found = {}
    for order in ORDERS:
        models = graph_on(fresh())
        for place, name in enumerate(order.split()):
            found[order, place, name] = close(run(name, models[name]), reference(name))
            between()
    return found


def check_the_runs_differ():
    names = ("plain", "motion", "other", "lora")
    for one in names:
        for other in names[: names.index(one)]:
            assert not equal(reference(one), reference(other)), (one, other)


def check_no_order_changes_a_run():
    found = differences()
    assert not any(found.values()), found


def check_no_order_changes_a_run_with_an_unload_after_each():
    found = differences(unload)
    assert not any(found.values()), found


def check_no_order_changes_a_run_in_little_memory():
    for name in ("plain", "motion", "other", "lora"):
        reference(name)
    with small_budget():
        found = differences()
    assert max(found.values()) < 1e-6, found
    found = differences()
    assert not any(found.values()), found


def check_each_model_keeps_its_own_tables():
    """A noise schedule, by its values: the plain model's and AnimateDiff's, after any order."""
    import torch

    checks = host.submodule("nodes.checks")
    for order in ORDERS:
        base = fresh()
        before = base.get_model_object("model_sampling").sigmas.clone()
        models = graph_on(base)
        for name in order.split():
            run(name, models[name])
            assert equal(base.model.model_sampling.sigmas.cpu(), before) or name != "plain"
        unload()
        for name, model in models.items():
            table = model.get_model_object("model_sampling").sigmas.cpu()
            wanted = before if name == "plain" else checks._trained_sigmas().float()
            assert torch.allclose(table, wanted, rtol=1e-5), (order, name)


def check_positions_keep_their_values():
    """They are buffers, which such a host casts and restores by path as well."""
    module = GRAPH.load()
    base = fresh()
    model = GRAPH.nodes["ADL_ApplyMotionModule"].execute(base, module).result[0]
    weights = GRAPH.weights(module)
    before = {k: v.clone() for k, v in weights.named_buffers()}
    assert before
    for _ in range(2):
        run("motion", model)
        unload()
    after = dict(weights.named_buffers())
    assert before.keys() == after.keys()
    assert all(equal(after[k], v) for k, v in before.items())


if __name__ == "__main__":
    main(GRAPH, globals())
