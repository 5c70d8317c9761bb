"""Load Video: frames, sound and rate of a video in ComfyUI's input folder."""

from comfy_api.latest import io

from ..video.clip import ClipRequest, read_clip
from ..video.size import MAX_SIDE
from .host import execution, folders
from .host.schema import search_aliases


class LoadVideo(io.ComfyNode):
    """Reads a video evenly resampled in time and resized for SD1.5."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ADL_LoadVideo",
            display_name="Load Video Frames",
            category="AnimateDiff-Lightning",
            description="Loads a video, GIF or animated picture as frames for video-to-video: a "
            "part of it, at the frame rate and size you need, with the sound of that part.",
            **search_aliases("load video as images", "video frames"),
            inputs=[
                io.Combo.Input(
                    "video",
                    options=folders.list_input_videos(),
                    upload=io.UploadType.video,
                    tooltip="A video, GIF, animated WebP or animated PNG in ComfyUI's input "
                    "folder; the button uploads a video into it.",
                ),
                io.Float.Input(
                    "start",
                    default=0.0,
                    min=0.0,
                    max=86400.0,
                    step=0.01,
                    optional=True,
                    tooltip="The time to begin at, in seconds, as a video player shows it. The "
                    "sound begins there, too.",
                ),
                io.Int.Input(
                    "max_frames",
                    default=64,
                    min=0,
                    max=100000,
                    optional=True,
                    tooltip="The largest number of frames to load, counted after fps is applied; a "
                    "shorter video has fewer. 0 loads all; 100 frames of 512 x 512 take 0.3 GB of "
                    "memory.",
                ),
                io.Float.Input(
                    "fps",
                    default=0.0,
                    min=0.0,
                    max=240.0,
                    step=0.01,
                    optional=True,
                    tooltip="Frames per second of the output. A lower rate skips frames, a higher "
                    "rate repeats them; speed and length stay the same. 0 keeps the video's own "
                    "rate (its average, if it varies). AnimateDiff was trained at 8.",
                ),
                io.Int.Input(
                    "width",
                    default=512,
                    min=0,
                    max=MAX_SIDE,
                    step=64,
                    optional=True,
                    tooltip="The width of the frames, rounded to a multiple of 64. 0 follows the "
                    "height; 0 for both keeps the video's size. The frames are cropped evenly on "
                    "both sides to fit the new shape, and never squeezed.",
                ),
                io.Int.Input(
                    "height",
                    default=0,
                    min=0,
                    max=MAX_SIDE,
                    step=64,
                    optional=True,
                    tooltip="The height of the frames, rounded to a multiple of 64. 0 follows the "
                    "width; 0 for both keeps the video's size.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="images",
                    tooltip="The frames; connect to VAE Encode or a ControlNet preprocessor. HDR "
                    "becomes SDR, and transparency is left out.",
                ),
                io.Audio.Output(
                    display_name="audio",
                    tooltip="The sound of the same part, for Create Video; silence if the video "
                    "has no sound that can be read. Sound with more than two channels becomes "
                    "stereo.",
                ),
                io.Float.Output(
                    display_name="fps",
                    tooltip="The frame rate of the loaded frames; connect to Create Video.",
                ),
                io.Int.Output(
                    display_name="frame_count",
                    tooltip="The number of frames that were loaded; connect to num_frames of "
                    "Prompt Travel or batch_size of Empty Latent Image.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, video: str | None = None) -> bool | str:
        if video is None:  # comes from a link, so it is not known yet
            return True
        try:
            folders.find_input_file(video)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, video: str | None = None, **_others) -> tuple | None:
        if video is None:
            return None
        status = folders.find_input_file(video).stat()
        return video, status.st_mtime_ns, status.st_size

    @classmethod
    def execute(
        cls,
        video: str,
        start: float = 0.0,
        max_frames: int = 64,
        fps: float = 0.0,
        width: int = 512,
        height: int = 0,
    ) -> io.NodeOutput:
        clip = read_clip(
            folders.find_input_file(video),
            ClipRequest(start, max_frames, fps, width, height),
            memory=execution.get_free_memory(),
            on_frame=execution.raise_if_cancelled,
        )
        execution.show_on_node(*clip.warnings)
        return io.NodeOutput(clip.images, clip.audio, clip.fps, len(clip.images))
