"""torch.compile over a UNet with a motion module: neither the hooks nor einops break its graph."""

import pytest
import torch
import torch._dynamo
from animatediff_lightning.motion_module.inject import inject
from animatediff_lightning.samplers import context

pytestmark = pytest.mark.slow

FRAMES = 6
CHANNELS = (32,)  # one level: Dynamo takes seconds for every layer


@torch.no_grad()
def trace(model, *inputs):
    """Return what Dynamo says of one evaluation of a model."""
    torch._dynamo.reset()  # or graphs of an earlier test would be taken again
    return torch._dynamo.explain(model)(*inputs)


def test_a_motion_module_breaks_no_graph(thin_unet, thin_config, random_module):
    unet = thin_unet(CHANNELS)
    inputs = torch.zeros(2 * FRAMES, 4, 8, 8), torch.tensor(499), torch.zeros(2 * FRAMES, 3, 16)
    plain = trace(unet, *inputs)
    inject(unet, random_module(thin_config(CHANNELS)), num_frames=FRAMES)
    injected = trace(unet, *inputs)
    assert injected.op_count > plain.op_count + 100, "the motion module was not traced"
    assert plain.graph_break_count == 0
    assert injected.graph_break_count == 0, injected.break_reasons


def test_windows_and_the_other_norm_scope_break_no_graph(thin_config, random_module):
    module = random_module(thin_config(CHANNELS, norm_scope="clip"))
    layer = module.temporal_transformers()["mid_block.motion_modules.0"]
    options = context.ContextOptions(context_length=4, context_overlap=2, schedule="static")
    windows = context.plan(FRAMES, options).to(torch.zeros(()))
    explained = trace(layer, torch.zeros(2 * FRAMES, 32, 4, 4), FRAMES, 1.0, windows)
    assert explained.graph_break_count == 0, explained.break_reasons
