"""Load Motion LoRA: a camera move or a kind of motion, on top of a motion module."""

from comfy_api.latest import io

from .host import folders
from .host.motion_module import add_motion_lora
from .host.schema import search_aliases
from .loaders import MotionModuleType

folders.register_model_folder(folders.LORAS_FOLDER)


class LoadMotionLoRA(io.ComfyNode):
    """Adds a motion LoRA to a motion module; the one that comes in stays as it is."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ADL_LoadMotionLoRA",
            display_name="Load Motion LoRA",
            category="AnimateDiff-Lightning",
            description="Adds a motion LoRA, such as a camera move (zoom, pan, tilt, roll), to a "
            "motion module. Chain several to combine them.",
            **search_aliases("AnimateDiff LoRA", "camera motion"),
            inputs=[
                MotionModuleType.Input(
                    "motion_module",
                    tooltip="From Load Motion Module, or from another Load Motion LoRA.",
                ),
                io.Combo.Input(
                    "motion_lora",
                    options=folders.list_model_files(folders.LORAS_FOLDER),
                    tooltip="A LoRA for the motion module, not for the image model. Put motion "
                    "LoRAs into models/animatediff_motion_lora and press R to refresh the list.",
                ),
                io.Float.Input(
                    "strength",
                    default=0.8,
                    min=-10.0,
                    max=10.0,
                    step=0.01,
                    tooltip="The strength of the added motion. The authors of Lightning recommend "
                    "0.7 to 0.8 with their modules. 0 switches the LoRA off; a negative value "
                    "subtracts it.",
                ),
            ],
            outputs=[
                MotionModuleType.Output(
                    display_name="motion_module",
                    tooltip="Connect to Apply Motion Module, or to another Load Motion LoRA.",
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(
        cls, motion_lora: str | None = None, **_others
    ) -> tuple[str, float] | None:
        return folders.read_file_state(folders.LORAS_FOLDER, motion_lora)

    @classmethod
    def execute(cls, motion_module, motion_lora: str, strength: float) -> io.NodeOutput:
        return io.NodeOutput(add_motion_lora(motion_module, motion_lora, strength))
