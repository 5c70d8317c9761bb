"""Video Noise: seeded noise that keeps long clips coherent (FreeNoise), and simpler kinds."""

from dataclasses import dataclass

import torch
from comfy_api.latest import io

from ..samplers import noise
from .host.execution import make_core_noise
from .host.schema import search_aliases


@dataclass(frozen=True)
class VideoNoiseSource:
    """The NOISE of the graph: what SamplerCustomAdvanced asks for the noise of a latent."""

    seed: int
    mode: str
    context_length: int
    context_overlap: int

    def sources(self, num_frames: int) -> torch.Tensor:
        """Return the frame whose noise each frame takes; raises ValueError for bad windows."""
        return noise.noise_sources(
            num_frames, self.mode, self.context_length, self.context_overlap, self.seed
        )

    def generate_noise(self, input_latent: dict) -> torch.Tensor:
        """Return noise (frames, channels, height, width) on the CPU for a latent dict.

        With a `batch_index`, frames get the noise that they have in the clip they were cut from.
        """
        samples, batch_index = input_latent["samples"], input_latent.get("batch_index")
        sources = self.sources(samples.shape[0] if batch_index is None else max(batch_index) + 1)
        if batch_index is None:
            return make_core_noise(samples, self.seed)[sources]
        return make_core_noise(samples, self.seed, sources[list(batch_index)].tolist())


class VideoNoise(io.ComfyNode):
    """Makes the NOISE of a clip from a seed."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ADL_VideoNoise",
            display_name="Video Noise",
            category="AnimateDiff-Lightning",
            description="Makes the noise that a clip starts from, in place of Random Noise. For "
            "clips longer than one window it reuses the noise of the first window, which keeps the "
            "scene and the characters coherent.",
            **search_aliases("FreeNoise", "repeated noise"),
            inputs=[
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Another seed makes another clip. The first window of frames starts "
                    "from the same noise as with Random Noise and this seed; with constant, only "
                    "the first frame does.",
                ),
                io.Combo.Input(
                    "mode",
                    options=list(noise.MODES),
                    default=noise.FREENOISE,
                    optional=True,
                    tooltip="freenoise: later windows get the shuffled noise of the first one; "
                    "best for long clips. repeated: later windows get it in the same order; the "
                    "motion may repeat. constant: all frames share the same noise; calm, but the "
                    "motion may freeze. independent: new noise for every frame, as with Random "
                    "Noise.",
                ),
                io.Int.Input(
                    "context_length",
                    default=16,
                    min=1,
                    max=64,
                    optional=True,
                    tooltip="Frames in a window; use the number of Sliding Context. Clips that fit "
                    "into one window are the same in freenoise, repeated and independent.",
                ),
                io.Int.Input(
                    "context_overlap",
                    default=4,
                    min=0,
                    max=63,
                    optional=True,
                    tooltip="Frames that neighbouring windows share; use the number of Sliding "
                    "Context. Only freenoise uses it: it shuffles the noise in groups of "
                    "context_length minus context_overlap frames.",
                ),
            ],
            outputs=[
                io.Noise.Output(
                    display_name="noise",
                    tooltip="Connect to noise of SamplerCustomAdvanced (KSampler has no such "
                    "input).",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        seed: int,
        mode: str = noise.FREENOISE,
        context_length: int = 16,
        context_overlap: int = 4,
    ) -> io.NodeOutput:
        made = VideoNoiseSource(seed, mode, context_length, context_overlap)
        made.sources(0)  # refuses bad windows here, not in the sampler
        return io.NodeOutput(made)
