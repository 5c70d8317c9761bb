"""Makes docs/miniature.webp: eight clips of the bundled miniature, one in each of its styles.

    python docs/make_clip.py

Each clip comes from `animatediff-lightning generate` with the miniature's 4-step motion module.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

OUT = Path(__file__).parent / "miniature.webp"
PROMPTS = {
    "plain": "a big teal fish swimming right",
    "photo": "a big blue bird flying up",
    "dusk": "a big yellow mouse running left",
    "toon": "a big pink fish swimming left",
    "ink": "a big red bird flying left",
    "pastel": "a big green mouse running right",
    "neon": "a big teal fish swimming right",
    "wood": "a big yellow bird flying down",
}
FRAMES, FPS, SIDE = 16, 8, 16
COLUMNS, ENLARGED, GAP = 4, 9, 12


def make_frames(style: str, prompt: str) -> np.ndarray:
    """Generate a clip and return its frames in their own size, (frames, SIDE, SIDE, 3)."""
    with tempfile.TemporaryDirectory() as folder:
        sheet = Path(folder) / "sheet.png"
        program = [sys.executable, "-m", "animatediff_lightning.distill", "generate"]
        options = ["--base", f"miniature:{style}", "--prompt", prompt, "--steps", "4"]
        subprocess.run([*program, *options, "--frames", str(FRAMES), "--out", sheet], check=True)
        pixels = np.array(Image.open(sheet))
    columns = 4  # a contact sheet of 16 frames is square
    enlarged = pixels.shape[0] // columns // SIDE
    pixels = pixels[::enlarged, ::enlarged]
    tiles = pixels.reshape(columns, SIDE, columns, SIDE, 3).swapaxes(1, 2)
    return tiles.reshape(FRAMES, SIDE, SIDE, 3)


def lay_out(clips: list[np.ndarray]) -> np.ndarray:
    """Return all clips in a grid, each pixel enlarged, with white gaps between the clips."""
    rows = len(clips) // COLUMNS
    side = SIDE * ENLARGED
    height, width = rows * (side + GAP) - GAP, COLUMNS * (side + GAP) - GAP
    frames = np.full((FRAMES, height, width, 3), 255, np.uint8)
    for n, clip in enumerate(clips):
        top, left = (side + GAP) * (n // COLUMNS), (side + GAP) * (n % COLUMNS)
        pixels = clip.repeat(ENLARGED, axis=1).repeat(ENLARGED, axis=2)
        frames[:, top : top + side, left : left + side] = pixels
    return frames


def main() -> None:
    """Generate the clips and write the moving picture."""
    frames = lay_out([make_frames(*item) for item in PROMPTS.items()])
    first, *rest = [Image.fromarray(frame) for frame in frames]
    options = {"duration": 1000 // FPS, "loop": 0, "lossless": True, "method": 6}
    first.save(OUT, save_all=True, append_images=rest, **options)
    print(f"wrote {OUT}: {len(frames)} frames of {first.width}x{first.height}")


if __name__ == "__main__":
    main()
