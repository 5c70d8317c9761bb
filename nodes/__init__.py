"""The ComfyUI extension; its node list is the table of contents."""

from comfy_api.latest import ComfyExtension, io

from .context import PlotContext, SlidingContext
from .loaders import LoadMotionModule
from .lora import LoadMotionLoRA
from .model import ApplyMotionModule
from .noise import VideoNoise
from .prompt import PromptTravel
from .sampling import LightningScheduler
from .video import LoadVideo


class AnimateDiffLightningExtension(ComfyExtension):
    """The nodes of AnimateDiff-Lightning."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            LoadMotionModule,
            LoadMotionLoRA,
            ApplyMotionModule,
            LightningScheduler,
            SlidingContext,
            PlotContext,
            PromptTravel,
            VideoNoise,
            LoadVideo,
        ]
