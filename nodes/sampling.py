"""Lightning Scheduler: the few noise levels that a distilled motion module was trained on."""

from comfy_api.latest import io

from ..samplers import schedule
from . import checks
from .host.applied import get_applied_motion
from .host.execution import show_on_node
from .host.schema import search_aliases


class LightningScheduler(io.ComfyNode):
    """Makes the trailing sigmas of AnimateDiff-Lightning (section 4.1)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ADL_LightningScheduler",
            display_name="Lightning Scheduler",
            category="AnimateDiff-Lightning",
            description="Outputs the noise levels that Lightning motion modules were distilled on, "
            "for 1, 2, 4 or 8 steps. Use it with the sampler euler.",
            **search_aliases("AnimateDiff-Lightning sigmas", "few steps"),
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The MODEL from Apply Motion Module. The node compares steps with the "
                    "number that its motion module was distilled for.",
                ),
                io.Int.Input(
                    "steps",
                    default=4,
                    min=0,
                    max=schedule.NUM_TRAIN_TIMESTEPS,
                    tooltip="The number that the motion module was distilled for: 1, 2, 4 or 8 (3 "
                    "works with the 2-step file). More steps take longer; other numbers look "
                    "worse.",
                ),
                io.Int.Input(
                    "start_step",
                    default=0,
                    min=0,
                    max=schedule.NUM_TRAIN_TIMESTEPS - 1,
                    tooltip="0 makes a new clip. A higher number keeps more of the video in the "
                    "latent: with 4 steps, 1 changes much and 3 changes little. Use it in place of "
                    "denoise.",
                ),
            ],
            outputs=[
                io.Sigmas.Output(
                    display_name="sigmas",
                    tooltip="Connect to SamplerCustomAdvanced or SamplerCustom.",
                ),
            ],
        )

    @classmethod
    def execute(cls, model, steps: int, start_step: int) -> io.NodeOutput:
        applied = get_applied_motion(model)
        if applied is None:
            raise ValueError(
                "this MODEL has no motion module; connect the MODEL of Apply Motion Module."
            )
        show_on_node(checks.check_steps(steps, applied.file.steps))
        return io.NodeOutput(schedule.sigmas(steps, start_step))
