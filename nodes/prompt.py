"""Prompt Travel: a prompt that changes in the course of the clip."""

from comfy_api.latest import io

from ..samplers import travel
from .host.schema import search_aliases

_EXAMPLE = "0: a spring meadow\n12: the same meadow in snow"


class PromptTravel(io.ComfyNode):
    """Encodes keyframe prompts and blends them into one embedding a frame."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ADL_PromptTravel",
            display_name="Prompt Travel",
            category="AnimateDiff-Lightning",
            description="Changes the prompt along a clip: write a prompt for some frames, and the "
            "frames between them blend from one prompt to the next.",
            **search_aliases("prompt schedule", "keyframes"),
            inputs=[
                io.Clip.Input(
                    "clip",
                    tooltip="The text encoder, from the checkpoint loader or a LoRA loader.",
                ),
                io.String.Input(
                    "prompts",
                    default=_EXAMPLE,
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="One line for each prompt: the frame number (the first frame is 0), a "
                    "colon and the prompt. Repeat in every line what should stay the same. Frames "
                    "before the first line use its prompt, and frames after the last line use that "
                    "line's prompt.",
                ),
                io.Int.Input(
                    "num_frames",
                    default=16,
                    min=1,
                    max=4096,
                    tooltip="The number of frames of the clip: the batch_size of Empty Latent "
                    "Image.",
                ),
                io.Combo.Input(
                    "interpolation",
                    options=list(travel.INTERPOLATIONS),
                    default=travel.LINEAR,
                    optional=True,
                    tooltip="linear: each prompt fades evenly into the next. step: each prompt is "
                    "used until the next one starts.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    display_name="conditioning",
                    tooltip="One text embedding for each frame; connect to BasicGuider, or to "
                    "positive of a KSampler or ControlNet.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls, clip, prompts: str, num_frames: int, interpolation: str = travel.LINEAR
    ) -> io.NodeOutput:
        if clip is None:
            raise ValueError(
                "this checkpoint has no text encoder; connect the CLIP of an SD1.5 checkpoint."
            )
        keyframes = travel.parse(prompts, num_frames)
        weights = travel.keyframe_weights([k.frame for k in keyframes], num_frames, interpolation)
        encoded = [clip.encode_from_tokens_scheduled(clip.tokenize(k.text)) for k in keyframes]
        # a CLIP with scheduled hooks gives one entry for each part of the schedule
        parts = zip(*encoded, strict=True)
        return io.NodeOutput([_blend_part(part, weights) for part in parts])


def _blend_part(entries, weights) -> list:
    """Blend one [embedding, options] of every keyframe; other options are those of the first."""
    embeddings, options = zip(*entries, strict=True)
    pooled = [o.get("pooled_output") for o in options]
    blended = dict(options[0])
    if all(p is not None for p in pooled):
        blended["pooled_output"] = travel.blend([p[:, None] for p in pooled], weights)[:, 0]
    return [travel.blend(embeddings, weights), blended]
