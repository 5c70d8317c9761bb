"""AnimateDiff-Lightning: a ComfyUI node pack, and `animatediff_lightning` when installed by pip."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """Return the ComfyUI extension; imported on call, so that headless use never needs the host."""
    from .nodes import AnimateDiffLightningExtension

    return AnimateDiffLightningExtension()
