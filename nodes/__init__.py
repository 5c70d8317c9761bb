"""The ComfyUI extension; its node list is the table of contents."""

from comfy_api.latest import ComfyExtension, io

from .loaders import LoadMotionModule
from .model import ApplyMotionModule
from .sampling import LightningScheduler


class AnimateDiffLightningExtension(ComfyExtension):
    """The nodes of AnimateDiff-Lightning."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            LoadMotionModule,
            ApplyMotionModule,
            LightningScheduler,
        ]
