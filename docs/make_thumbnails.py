"""Makes workflows/*.jpg, which ComfyUI's Templates browser shows, from the bundled miniature.

    python docs/make_thumbnails.py

What the miniature can do is drawn by it, pixel by pixel, and labelled; what it lacks (a ControlNet,
a camera, AnimateLCM) is a diagram that says so. Run it again when the miniature is trained anew.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from animatediff_lightning.distill.miniature import shipped
from animatediff_lightning.distill.models.base_model import (
    BaseModel,
    encode_prompt,
    load_base,
    quiet_libraries,
)
from animatediff_lightning.distill.models.latents import decode_frames
from animatediff_lightning.distill.sampling.sample import (
    eps_predictor,
    in_windows,
    initial_noise,
)
from animatediff_lightning.distill.sampling.settings import SamplingSettings
from animatediff_lightning.motion_module import checkpoint
from animatediff_lightning.motion_module.inject import inject
from animatediff_lightning.samplers import euler, prediction, schedule, travel
from PIL import Image, ImageDraw, ImageFont

WORKFLOWS = Path(__file__).resolve().parents[1] / "workflows"
SIDE = 512  # pixels of a thumbnail
LABEL = 64  # its lowest rows
BACKGROUND, INK, FAINT = (24, 26, 32), (238, 238, 238), (150, 155, 165)
DRAWN = "pixel art by the bundled toy model"
DIAGRAM = "diagram, not a result"
FRAMES, GAP = 16, 6


class Scene:
    """The miniature in one style, which makes clips frame by frame."""

    def __init__(self, style: str) -> None:
        self.base: BaseModel = load_base(shipped.base(style))
        self.settings = SamplingSettings(frames=FRAMES).sized(
            self.base.default_size, self.base.latent_factor
        )

    @torch.inference_mode()
    def draw(
        self,
        prompts: Sequence[str],
        steps: int,
        seed: int,
        frames: int = FRAMES,
        weights: torch.Tensor | None = None,
        context_length: int | None = None,
    ) -> list[np.ndarray]:
        """Return the clip (frames, h, w, 3) as it is predicted after each step, the last one whole.

        `weights` (frames, prompts) blend the prompts frame by frame; None: there is one.
        """
        settings = replace(self.settings, frames=frames, context_length=context_length)
        noise = initial_noise(self.base, settings, torch.Generator().manual_seed(seed))
        module = checkpoint.load(shipped.student(steps)).build(dtype=torch.float32)
        predict = self._predictor(prompts, settings, weights)
        if settings.context is not None:
            predict = in_windows(predict, settings.context)
        predicted: list[np.ndarray] = []
        injection = inject(self.base.unet, module, num_frames=settings.frames_a_call)
        try:
            euler.sample(
                predict,
                noise,
                schedule.trailing_timesteps(steps),
                lambda _, x0: predicted.append(decode_frames(self.base, x0).numpy()),
            )
        finally:
            injection.eject()
        return predicted

    def _predictor(self, prompts, settings, weights):
        if weights is None:
            return eps_predictor(self.base, prompts, settings)
        blended = travel.blend([encode_prompt(self.base, p) for p in prompts], weights)

        def predict(x: torch.Tensor, t: int) -> torch.Tensor:
            out = self.base.unet(x, t, encoder_hidden_states=blended).sample
            return prediction.as_eps(out, x, t, self.base.prediction_type)

        return predict


# ---- layout ------------------------------------------------------------------------------------


def canvas() -> Image.Image:
    """Return an empty thumbnail."""
    return Image.new("RGB", (SIDE, SIDE), BACKGROUND)


def paste_grid(
    picture: Image.Image, tiles: Sequence[np.ndarray], columns: int, box: tuple[int, int, int, int]
) -> None:
    """Put tiles (h, w, 3), enlarged by a whole number, in rows into a box (left, top, w, h)."""
    left, top, width, height = box
    rows = -(-len(tiles) // columns)
    cell = min((width - GAP * (columns - 1)) // columns, (height - GAP * (rows - 1)) // rows)
    scale = max(1, cell // tiles[0].shape[0])
    side = scale * tiles[0].shape[0]
    x0 = left + (width - columns * side - (columns - 1) * GAP) // 2
    y0 = top + (height - rows * side - (rows - 1) * GAP) // 2
    for n, tile in enumerate(tiles):
        row, column = divmod(n, columns)
        enlarged = Image.fromarray(tile).resize((side, side), Image.Resampling.NEAREST)
        picture.paste(enlarged, (x0 + column * (side + GAP), y0 + row * (side + GAP)))


def label(picture: Image.Image, title: str, below: str) -> Image.Image:
    """Write what is seen, and how it came about, under a thumbnail."""
    draw = ImageDraw.Draw(picture)
    for text, y, size, colour in (
        (title, SIDE - LABEL + 4, 24, INK),
        (below, SIDE - LABEL + 36, 17, FAINT),
    ):
        font = ImageFont.load_default(size)
        width = draw.textlength(text, font)
        draw.text(((SIDE - width) / 2, y), text, colour, font)
    return picture


AREA = (12, 12, SIDE - 24, SIDE - LABEL - 20)
BADGE = 72  # the uppermost rows, over which the Templates browser writes "Node graph"


# ---- thumbnails --------------------------------------------------------------------------------


def after_each_step(style: str, prompt: str, steps: int, columns: int, title: str) -> Image.Image:
    """Show one frame as it is predicted after each step, and under it frames of the clip."""
    predicted = Scene(style).draw([prompt], steps, seed=3)
    picture = canvas()
    left, top, width, height = AREA
    upper = height * 82 // 100
    paste_grid(picture, [clip[8] for clip in predicted], columns, (left, top, width, upper))
    strip = [predicted[-1][i] for i in range(0, FRAMES, 2)]
    paste_grid(picture, strip, 8, (left, top + upper + GAP, width, height - upper - GAP))
    return label(picture, title, DRAWN)


def long_clip() -> Image.Image:
    """Show all 64 frames of a clip that was sampled in windows."""
    clip = Scene("toon").draw(
        ["a big pink fish swimming right"], 4, seed=1, frames=64, context_length=16
    )[-1]
    picture = canvas()
    paste_grid(picture, list(clip), 8, AREA)
    return label(picture, "64 frames in windows of 16", DRAWN)


def changing_prompt() -> Image.Image:
    """Show a clip whose prompt changes from frame to frame."""
    prompts = ["a big teal fish swimming right", "a big yellow fish swimming right"]
    weights = travel.keyframe_weights([2, FRAMES - 3], FRAMES)
    clip = Scene("plain").draw(prompts, 4, seed=1, weights=weights)[-1]
    picture = canvas()
    paste_grid(picture, list(clip), 4, AREA)
    return label(picture, "the prompt changes: teal to yellow", DRAWN)


def camera() -> Image.Image:
    """Draw a zoom: frames of a view that grows smaller within a picture."""
    picture = canvas()
    draw = ImageDraw.Draw(picture)
    middle = (SIDE // 2, (SIDE - LABEL) // 2)
    for n, half in enumerate((210, 165, 125, 90, 60)):
        shade = tuple(int(70 + 40 * n + c // 20) for c in INK)
        box = [
            middle[0] - half,
            middle[1] - half * 9 // 10,
            middle[0] + half,
            middle[1] + half * 9 // 10,
        ]
        draw.rounded_rectangle(box, 14, outline=shade, width=4)
    for dx, dy in ((-1, -1), (1, -1), (-1, 1), (1, 1)):
        outer = (middle[0] + dx * 195, middle[1] + dy * 175)
        inner = (middle[0] + dx * 75, middle[1] + dy * 68)
        draw.line([outer, inner], (255, 190, 80), 5)
        draw.ellipse([inner[0] - 8, inner[1] - 8, inner[0] + 8, inner[1] + 8], (255, 190, 80))
    return label(picture, "motion LoRA: the camera zooms in", DIAGRAM)


def boxes(names: Sequence[str], title: str) -> Image.Image:
    """Draw what goes into what, as boxes from top to bottom."""
    picture = canvas()
    draw = ImageDraw.Draw(picture)
    font, step = ImageFont.load_default(24), (SIDE - LABEL - BADGE) // len(names)
    for n, name in enumerate(names):
        y = BADGE + n * step
        draw.rounded_rectangle([86, y + 4, SIDE - 86, y + step - 30], 14, (44, 48, 60), FAINT, 3)
        width = draw.textlength(name, font)
        draw.text(((SIDE - width) / 2, y + (step - 26) / 2 - 12), name, INK, font)
        if n + 1 < len(names):
            x, end = SIDE // 2, y + step
            draw.line([(x, y + step - 30), (x, end - 4)], (255, 190, 80), 5)
            draw.polygon([(x - 10, end - 12), (x + 10, end - 12), (x, end + 3)], (255, 190, 80))
    return label(picture, title, DIAGRAM)


def make() -> dict[str, Image.Image]:
    """Return every thumbnail by the name of its workflow."""
    return {
        "Text to video in 4 steps": after_each_step(
            "toon", "a big blue bird flying right", 4, 2, "text to video after steps 1 to 4"
        ),
        "Landscape in 2 steps": after_each_step(
            "plain", "a big teal fish swimming right", 2, 2, "text to video after steps 1 and 2"
        ),
        "Portrait in 8 steps": after_each_step(
            "pastel", "a big yellow mouse running left", 8, 4, "text to video after steps 1 to 8"
        ),
        "Long video of 64 frames": long_clip(),
        "Prompt travel through seasons": changing_prompt(),
        "Camera zoom with motion LoRA": camera(),
        "Video to video with ControlNet": boxes(
            ("your video", "its edges", "ControlNet", "a new video"), "video to video by edges"
        ),
        "AnimateLCM in 6 steps": boxes(
            ("prompt", "AnimateLCM", "6 steps, LCM sampler", "video"), "text to video in 6 steps"
        ),
    }


def main() -> None:
    """Write every thumbnail."""
    quiet_libraries()
    for name, picture in make().items():
        file = WORKFLOWS / f"{name}.jpg"
        picture.save(file, quality=78, optimize=True)
        print(f"wrote {file} ({file.stat().st_size:,} bytes)")


if __name__ == "__main__":
    main()
