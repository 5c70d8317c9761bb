"""Apply Motion Module: gives an SD1.5 MODEL motion and AnimateDiff's noise schedule."""

from comfy_api.latest import io

from .context import ContextType
from .host.apply import apply_motion_module
from .host.schema import search_aliases
from .loaders import MotionModuleType


class ApplyMotionModule(io.ComfyNode):
    """Puts a motion module into a clone of a MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ADL_ApplyMotionModule",
            display_name="Apply Motion Module",
            category="AnimateDiff-Lightning",
            description="Turns an SD1.5 MODEL into a video model: the latents of a batch become "
            "the frames of one clip. It also sets the noise schedule that AnimateDiff was trained "
            "with.",
            **search_aliases("AnimateDiff", "use AnimateDiff"),
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="Any SD1.5 checkpoint; its style is kept. LoRAs for the image model "
                    "may come before or after this node.",
                ),
                MotionModuleType.Input(
                    "motion_module",
                    tooltip="The motion module, from Load Motion Module or Load Motion LoRA.",
                ),
                io.Float.Input(
                    "scale",
                    default=1.0,
                    min=0.0,
                    max=10.0,
                    step=0.01,
                    optional=True,
                    tooltip="How sharply each frame attends to the other frames. 1 is as trained; "
                    "higher values make the motion stronger and less stable, lower values make it "
                    "calmer.",
                ),
                ContextType.Input(
                    "context",
                    optional=True,
                    tooltip="For clips that are longer than the motion module can see at once (32 "
                    "frames, AnimateLCM 64): connect Sliding Context. Clips that fit into one "
                    "window ignore it.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model",
                    tooltip="Connect to the guider or KSampler, and to Lightning Scheduler.",
                ),
            ],
        )

    @classmethod
    def execute(cls, model, motion_module, scale: float = 1.0, context=None) -> io.NodeOutput:
        return io.NodeOutput(apply_motion_module(model, motion_module, scale, context))
