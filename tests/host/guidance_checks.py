"""The core's guiders and model patches with motion and with both kinds of windows.

    PYTHON_OF_COMFYUI tests/host/guidance_checks.py COMFYUI_FOLDER MODELS_FOLDER [CHECK ...]

Where a setting makes a node the identity or plain guidance, that is the expectation; another
setting must then change the clip, and the motion must go on changing it too.
"""

import tempfile
from functools import cache
from pathlib import Path

import host
from checking import Graph, close, compiled, equal, main, outputs, refusal, sample_with

GRAPH = Graph()
FRAMES, CFG = 7, 1.5
SETTINGS = (None, "latents", "features")


@cache
def model_with(where):
    """Return a MODEL with motion: `where` windows, or None."""
    node = GRAPH.nodes["ADL_SlidingContext"]
    context = where and node.execute(4, 1, "static", "pyramid", False, 1, where).result[0]
    return GRAPH.apply(context=context)


@cache
def still_model():
    """Return the base on the same noise schedule, without motion."""
    base = GRAPH.base.clone()
    base.add_object_patch("model_sampling", model_with(None).get_model_object("model_sampling"))
    return base


def sample(guider, model, steps=1):
    """Sample a short clip with a guider of the core."""
    return sample_with(guider, GRAPH.core_sigmas(model, steps), FRAMES)


def guided(model, cfg=CFG, positive=1, negative=2):
    """Sample with plain guidance between two random prompts."""
    import comfy.samplers

    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(host.conditioning(positive), host.conditioning(negative))
    guider.set_cfg(cfg)
    return sample(guider, model)


@cache
def reference(where, cfg=CFG, positive=1, negative=2):
    """Return what motion and windows give without the node that a check is about."""
    return guided(model_with(where), cfg, positive, negative)


def first(node, *args):
    """Run a core node; returns its first output."""
    return outputs(node, *args)[0]


def acts(run):
    """Assert that `run(model)` changes each clip, keeps its motion, and leaves the base alone."""
    before = guided(GRAPH.base)
    still = run(still_model())
    for where in SETTINGS:
        clip = run(model_with(where))
        assert clip.isfinite().all(), where
        assert close(clip, reference(where)) > 1e-3, (where, "the node did nothing")
        assert close(clip, still) > 1e-2, (where, "the motion module did nothing")
    assert equal(guided(GRAPH.base), before)


def is_plain(run, bar=1e-5, **settings):
    """Assert that `run(model)` gives what plain guidance with `settings` gives."""
    for where in SETTINGS:
        difference = close(run(model_with(where)), reference(where, **settings))
        assert difference <= bar, (where, difference)


def check_dual_cfg():
    from comfy_extras.nodes_custom_sampler import DualCFGGuider

    def run(style, middle, cfg1, cfg2):
        conds = [host.conditioning(i) for i in (1, middle, 2)]
        return lambda m: sample(first(DualCFGGuider, m, *conds, cfg1, cfg2, style), m)

    is_plain(run("regular", 1, 3.0, CFG))  # both prompts are one: its scale does not matter
    is_plain(run("nested", 3, 1.0, CFG))
    acts(run("regular", 3, 1.2, 1.8))


def check_perp_neg():
    from comfy_extras.nodes_perpneg import PerpNegGuider

    def run(scale):
        conds = [host.conditioning(i) for i in (1, 3, 2)]
        return lambda m: sample(first(PerpNegGuider, m, *conds, CFG, scale), m)

    is_plain(run(0.0))
    acts(run(1.0))


def patched(node, *args):
    """Return a run with a core node that patches the MODEL."""
    return lambda model: guided(first(node, model, *args))


def check_rescale_cfg():
    from comfy_extras.nodes_model_advanced import RescaleCFG

    is_plain(patched(RescaleCFG, 0.0), bar=1e-4)
    acts(patched(RescaleCFG, 0.7))


def check_apg():
    from comfy_extras.nodes_apg import APG

    # with nothing projected, clipped or averaged it is plain guidance of one more
    is_plain(patched(APG, 1.0, 0.0, 0.0), bar=1e-4, cfg=CFG + 1)
    acts(patched(APG, 0.5, 2.0, 0.0))


def check_freeu():
    from unittest import mock

    from comfy_extras.nodes_freelunch import FreeU

    # FreeU looks for two and four times the first channels, which a thin UNet has nowhere
    settings = GRAPH.base.model.model_config.unet_config
    with mock.patch.dict(settings, model_channels=settings["model_channels"] // 2):
        is_plain(patched(FreeU, 1.0, 1.0, 1.0, 1.0), bar=1e-4)
        acts(patched(FreeU, 1.1, 1.2, 0.9, 0.2))


def check_tome():
    from comfy_extras.nodes_tomesd import TomePatchModel

    is_plain(patched(TomePatchModel, 0.0), bar=0)
    acts(patched(TomePatchModel, 0.5))


def check_model_lora():
    """Before and after Apply Motion Module, by both loaders: the same clip."""
    import folder_paths
    import safetensors.torch
    import torch

    import nodes as core

    torch.manual_seed(0)
    name = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_v"
    tensors = {
        f"{name}.lora_up.weight": torch.randn(320, 4),
        f"{name}.lora_down.weight": torch.randn(4, 320),
    }
    with tempfile.TemporaryDirectory() as folder:
        safetensors.torch.save_file(tensors, Path(folder) / "adl_test.safetensors")
        folder_paths.add_model_folder_path("loras", folder)
        folder_paths.filename_list_cache.clear()

        def only(model, strength=1.0):
            return core.LoraLoaderModelOnly().load_lora_model_only(
                model, "adl_test.safetensors", strength
            )[0]

        def both(model):
            return core.LoraLoader().load_lora(model, None, "adl_test.safetensors", 1.0, 1.0)[0]

        acts(lambda model: guided(only(model)))
        is_plain(lambda model: guided(only(model, 0.0)), bar=0)
        for where in SETTINGS:
            after = guided(only(model_with(where)))
            assert equal(guided(both(model_with(where))), after), where
        assert equal(guided(GRAPH.apply(only(GRAPH.base))), guided(only(model_with(None))))


def check_compiled():
    """Feature windows that move from step to step, under a compiled UNet.

    sampling_checks takes turns with the plain model.
    """
    node = GRAPH.nodes["ADL_SlidingContext"]
    context = node.execute(4, 1, "uniform", "pyramid", False, 1, "features").result[0]
    model = GRAPH.apply(context=context)
    assert close(run_steps(compiled(model)), run_steps(model)) < 1e-4


def run_steps(model):
    """Sample in two steps: windows of schedule uniform move between them."""
    import comfy.samplers

    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(host.conditioning(1), host.conditioning(2))
    return sample(guider, model, steps=2)


def check_self_attention_guidance_wants_windows_in_the_features():
    """It compares the whole clip with the attention of the model's last call."""
    from comfy_extras.nodes_sag import SelfAttentionGuidance

    def run(where, scale=0.5):
        model = first(SelfAttentionGuidance, model_with(where), scale, 2.0)
        # in the middle of the UNet, where it looks, smaller latents are a single place
        return host.sample(model, GRAPH.core_sigmas(model, 1), FRAMES, cfg=CFG, size=32)

    message = refusal(run, "latents")
    assert "set where of Sliding Context to features, or remove the Self-Attention" in message
    for where in (None, "features"):
        assert close(run(where), run(where, scale=0.0)) > 1e-3, where


if __name__ == "__main__":
    main(GRAPH, globals())
