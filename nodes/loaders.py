"""Load Motion Module: a file of models/animatediff_models, recognised and validated."""

from comfy_api.latest import io

from .host import folders
from .host.motion_module import load_motion_module
from .host.schema import search_aliases

folders.register_model_folder(folders.MODELS_FOLDER)
MotionModuleType = io.Custom("ADL_MOTION_MODULE")


class LoadMotionModule(io.ComfyNode):
    """Reads a motion module file and says how many steps it was distilled for."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ADL_LoadMotionModule",
            display_name="Load Motion Module",
            category="AnimateDiff-Lightning",
            description="Loads an AnimateDiff motion module for SD1.5: Lightning, v2, v3 or "
            "AnimateLCM, in the comfyui or the diffusers layout.",
            **search_aliases("load AnimateDiff model", "motion model"),
            inputs=[
                io.Combo.Input(
                    "motion_module",
                    options=folders.list_model_files(folders.MODELS_FOLDER),
                    tooltip="The motion module file. Put motion modules into "
                    "models/animatediff_models and press R to refresh the list.",
                ),
            ],
            outputs=[
                MotionModuleType.Output(
                    display_name="motion_module",
                    tooltip="Connect to Apply Motion Module, or to Load Motion LoRA before it.",
                ),
                io.Int.Output(
                    display_name="steps",
                    tooltip="The number of steps that the file was distilled for; connect to steps "
                    "of Lightning Scheduler. It is 0 if neither the file nor its name contains the "
                    "number.",
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, motion_module: str | None = None) -> tuple[str, float] | None:
        return folders.read_file_state(folders.MODELS_FOLDER, motion_module)

    @classmethod
    def execute(cls, motion_module: str) -> io.NodeOutput:
        loaded = load_motion_module(motion_module)
        return io.NodeOutput(loaded, loaded.steps)
