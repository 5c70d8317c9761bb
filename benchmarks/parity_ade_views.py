"""ADE's View Options (windows inside its motion model) against our windows of `features`.

parity_ade_windows.py runs this. The two are one thing where a single temporal attention is fused,
and where windows do not overlap. With overlap and both attentions they differ: ADE takes each
window through both attentions and fuses once, here every attention is fused.
"""

import itertools
import sys

CHANNELS, SIZE, STEPS = 320, 2, 3
ONE = "views, one attention"
BOTH = "views, both attentions"
APART = "views, both attentions, no overlap"
RUN = "views, latents, no overlap"
AS_CONTEXT = "ADE's views-only context : ours"
PLAIN = "ADE's views-only context : no windows"
DIFFERENT = (BOTH, PLAIN)
RAISES = "ADE raises"


def transformers(silent):
    """Return (ours, ADE's) temporal transformer of the same random weights.

    `silent` takes the second attention out of both, by zeros in its last projection.
    """
    import comfy.ops
    import host
    import torch

    config = host.submodule("motion_module.config").MotionModuleConfig()
    ours = host.submodule("motion_module.temporal").TemporalTransformer(
        CHANNELS, config, comfy.ops.disable_weight_init
    )
    generator = torch.Generator().manual_seed(0)
    for name, weight in ours.named_parameters():
        spread = CHANNELS**-0.5
        offset = float("norm" in name and name.endswith("weight"))
        weight.data = torch.randn(weight.shape, generator=generator) * spread + offset
    if silent:
        for weight in ours.transformer_blocks[0].attention_blocks[1].to_out.parameters():
            weight.data.zero_()
    return ours, _theirs(ours, config)


def _theirs(ours, config):
    module = sys.modules["animatediff_evolved.animatediff.motion_module_ad"]
    heads = config.num_heads
    theirs = module.TemporalTransformer3DModel(
        CHANNELS,
        heads,
        CHANNELS // heads,
        1,
        temporal_pe=True,
        temporal_pe_max_len=config.max_frames,
    )
    theirs.load_state_dict(ours.state_dict())
    return theirs.eval()


def ade_views(length, overlap, schedule, fuse, closed_loop=False):
    """Return the peer's VIEW_OPTS for the same windows."""
    import contenders

    nodes = contenders.ade_pack().NODE_CLASS_MAPPINGS
    if schedule == "static":
        return nodes["ADE_StandardStaticViewOptions"]().create_options(length, overlap, fuse)[0]
    if schedule == "uniform":
        node = nodes["ADE_StandardUniformViewOptions"]()
        return node.create_options(length, overlap, 1, fuse)[0]
    node = nodes["ADE_LoopedUniformViewOptions"]()
    return node.create_options(length, overlap, 1, closed_loop, fuse)[0]


def compare_module(pair, case, schedule, fuse, closed_loop):
    """Return the largest relative difference over some steps; None where ADE raises."""
    import host
    import torch

    ours, theirs = pair
    frames, length, overlap = case
    context = host.submodule("samplers.context")
    options = context.ContextOptions(length, overlap, schedule, fuse, closed_loop)
    views = ade_views(length, overlap, schedule, fuse, closed_loop)
    x = torch.randn(frames, CHANNELS, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    theirs.set_video_length(frames, frames)
    worst = 0.0
    for step in range(STEPS):
        views.step = step
        wanted = ours(x, frames, windows=context.plan(frames, options, step).to(x))
        try:
            got = theirs(x, view_options=views, transformer_options={"sigmas": torch.ones(1)})
        except RuntimeError:
            return None
        # without the residual, which both add unchanged
        worst = max(worst, float((got - wanted).norm() / (wanted - x).norm()))
    return worst


def compare_modules(cases, schedules, fuses):
    """Return rows of the temporal transformers alone: one attention, both, both without overlap."""
    alone, both = transformers(silent=True), transformers(silent=False)
    rows = []
    for frames, length, overlap in cases:
        for of, pair, shape in (
            (ONE, alone, (frames, length, overlap)),
            (BOTH, both, (frames, length, overlap)),
            (APART, both, (frames // length * length, length, 0)),  # else the last one overlaps
        ):
            # moving windows without overlap do overlap where they meet the clip's ends
            still = [s for s in schedules if of != APART or s != "uniform"]
            for schedule, fuse in itertools.product(still, fuses):
                difference = compare_module(pair, shape, schedule, fuse, False)
                text = RAISES if difference is None else f"{difference:.1e}"
                rows.append((*shape, schedule, fuse, False, of, text))
    return rows


def compare_runs(base, makers, nodes):
    """Return rows of the latents of one step, both packs' own nodes in a whole graph.

    ADE's View Options need a context; one that spans the clip, with use_on_equal_length, makes them
    our `features`. Its views-only context gives the same, and no windows at all something else.
    """
    import contenders
    import host

    ade = contenders.ade_pack().NODE_CLASS_MAPPINGS
    sigmas = contenders.trailing_sigmas(1)
    views = ade_views(16, 0, "static", "flat")
    spanning = ade["ADE_StandardStaticContextOptions"]().create_options(
        32, 0, "flat", use_on_equal_length=True, view_opts=views
    )[0]
    as_context = ade["ADE_ViewsOnlyContextOptions"]().create_options(views)[0]
    ours = contenders.our_context(nodes, 16, 0, "static", "flat", where="features")
    wanted = {
        "ours": ("ours", ours),
        "plain": ("ours", None),
        "spanning": ("ade", spanning),
        "as_context": ("ade", as_context),
    }
    latents = {  # one model after the other: each has motion weights of its own
        name: host.sample(makers[pack](base, context), sigmas, size=8, frames=32)
        for name, (pack, context) in wanted.items()
    }

    def difference(one, other):
        return f"{float((latents[one] - latents[other]).norm() / latents[other].norm()):.1e}"

    shape = (32, 16, 0, "static", "flat", False)
    return [
        (*shape, RUN, difference("ours", "spanning")),
        (*shape, AS_CONTEXT, difference("as_context", "ours")),
        (*shape, PLAIN, difference("as_context", "plain")),
    ]
