"""Apply Motion Module: gives an SD1.5 MODEL motion and AnimateDiff's noise schedule."""

from comfy_api.latest import io

from .context import ContextType
from .host.apply import apply_motion_module
from .loaders import MotionModuleType


class ApplyMotionModule(io.ComfyNode):
    """Puts a motion module into a clone of a MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ADL_ApplyMotionModule",
            display_name="Apply Motion Module",
            category="AnimateDiff-Lightning",
            description="Turns an SD1.5 MODEL into a video model: a batch of latents becomes the "
            "frames of one clip. Also sets the noise schedule that AnimateDiff was trained with.",
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="Any SD1.5 checkpoint; its look stays. LoRAs may come before or after.",
                ),
                MotionModuleType.Input(
                    "motion_module",
                    tooltip="The motion, from Load Motion Module.",
                ),
                io.Float.Input(
                    "scale",
                    default=1.0,
                    min=0.0,
                    max=10.0,
                    step=0.01,
                    optional=True,
                    tooltip="How sharply each frame picks the frames it takes motion from. 1 is as "
                    "trained; above it motion grows stronger and wilder, below it calmer.",
                ),
                ContextType.Input(
                    "context",
                    optional=True,
                    tooltip="For clips longer than the motion module can see at once (32 frames): "
                    "connect Sliding Context. Shorter clips ignore it.",
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
