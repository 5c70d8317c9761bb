"""Sliding Context: clips longer than the motion module's positions; Plot Context draws it."""

from comfy_api.latest import io

from ..samplers import context
from .host.schema import advanced, search_aliases
from .host.windows import WindowSettings

ContextType = io.Custom("ADL_CONTEXT")
MAX_PIXELS = 2**24


class SlidingContext(io.ComfyNode):
    """Chooses how a long clip is cut into windows."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        defaults = context.ContextOptions()
        return io.Schema(
            node_id="ADL_SlidingContext",
            display_name="Sliding Context",
            category="AnimateDiff-Lightning",
            description="Makes clips of any length by sampling the frames in overlapping windows. "
            "Connect it to context of Apply Motion Module.",
            **search_aliases("context options", "long video"),
            inputs=[
                io.Int.Input(
                    "context_length",
                    default=defaults.context_length,
                    min=2,
                    max=64,
                    tooltip="Frames in a window, which see each other. Motion modules were trained "
                    "on 16; longer windows make slower motion.",
                ),
                io.Int.Input(
                    "context_overlap",
                    default=defaults.context_overlap,
                    min=0,
                    max=63,
                    tooltip="Frames that two neighbouring windows share. More makes smoother "
                    "transitions and, with latents, takes longer.",
                ),
                io.Combo.Input(
                    "schedule",
                    options=list(context.SCHEDULES),
                    default=defaults.schedule,
                    **advanced(io.Combo.Input),
                    tooltip="uniform: the windows move with every step, so that no border stays in "
                    "place. static: the windows stay in place. looped: some windows also join the "
                    "end of the clip to its beginning.",
                ),
                io.Combo.Input(
                    "fuse",
                    options=list(context.FUSES),
                    default=defaults.fuse,
                    **advanced(io.Combo.Input),
                    tooltip="How shared frames are mixed. pyramid: the middle of a window has the "
                    "most weight. relative: the same, but steeper. flat: all frames have the same "
                    "weight. overlap-linear: a cross-fade over the overlap.",
                ),
                io.Boolean.Input(
                    "closed_loop",
                    default=defaults.closed_loop,
                    **advanced(io.Boolean.Input),
                    tooltip="With looped: the clip repeats without a jump.",
                ),
                io.Int.Input(
                    "windows_per_call",
                    default=1,
                    **advanced(io.Int.Input),
                    min=0,
                    max=64,
                    tooltip="With latents: the number of windows that are sampled at once. More "
                    "can be faster and needs more memory; 0 uses as many as fit. It does not "
                    "change the clip.",
                ),
                io.Combo.Input(
                    "where",
                    options=["latents", "features"],
                    default="latents",
                    tooltip="latents: the model runs on each window; memory does not grow with the "
                    "length of the clip. features: the model runs once on all frames and uses "
                    "windows only for the motion; this is faster, but memory grows with the "
                    "length.",
                ),
            ],
            outputs=[
                ContextType.Output(
                    display_name="context",
                    tooltip="Connect to Apply Motion Module or Plot Context.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls, context_length, context_overlap, schedule, fuse, closed_loop, windows_per_call, where
    ) -> io.NodeOutput:
        options = context.ContextOptions(
            context_length, context_overlap, schedule, fuse, closed_loop
        )
        return io.NodeOutput(WindowSettings(options, where, windows_per_call))


class PlotContext(io.ComfyNode):
    """Draws the windows of every step."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ADL_PlotContext",
            display_name="Plot Context",
            category="AnimateDiff-Lightning",
            description="Draws which frames are sampled together at each step and the weight of "
            "each window, to help choose the settings of Sliding Context.",
            **search_aliases("view context", "windows"),
            inputs=[
                ContextType.Input("context", tooltip="The output of Sliding Context."),
                io.Int.Input(
                    "num_frames",
                    default=64,
                    min=1,
                    max=4096,
                    tooltip="The number of frames of the clip (batch_size of the latent).",
                ),
                io.Int.Input(
                    "steps", default=4, min=1, max=100, tooltip="The number of steps to draw."
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="image",
                    tooltip="Each step is a band, each row of a band is a window, and each column "
                    "is a frame. A brighter cell means more weight.",
                ),
            ],
        )

    @classmethod
    def execute(cls, context, num_frames: int, steps: int) -> io.NodeOutput:
        return io.NodeOutput(plot(context.options, num_frames, steps)[None])


def plot(options: context.ContextOptions, num_frames: int, steps: int):
    """Return the picture of the windows, (height, width, 3) in 0 to 1: steps below each other.

    Raises ValueError where it would have more than MAX_PIXELS.
    """
    import torch

    cell, gap = max(1, 1024 // num_frames), 8
    plans = [context.plan(num_frames, options, step) for step in range(steps)]
    height = sum(len(plan) * cell + gap for plan in plans)
    if height * num_frames * cell > MAX_PIXELS:
        raise ValueError(
            f"a picture of {num_frames * cell} x {height} pixels is too large; lower num_frames or "
            "steps."
        )
    bands = []
    for step, plan in enumerate(plans):
        rows = torch.zeros(len(plan), num_frames)
        rows.scatter_(1, plan.indices, plan.weights.float())
        colour = torch.tensor([0.35, 0.75, 1.0] if step % 2 else [1.0, 0.7, 0.3])
        band = 0.08 + 0.92 * rows[:, :, None] * colour
        bands.append(band.repeat_interleave(cell, 0).repeat_interleave(cell, 1))
        bands.append(torch.zeros(gap, num_frames * cell, 3))
    return torch.cat(bands[:-1])
