"""Makes docs/icon.png and docs/banner.png for the ComfyUI registry, from the bundled miniature.

    python docs/make_icon.py

The registry asks for a square icon of 400 pixels, and for a banner of 21 : 9.
"""

from pathlib import Path

import numpy as np
from make_thumbnails import BACKGROUND, INK, Scene
from PIL import Image, ImageDraw, ImageFont

FOLDER = Path(__file__).parent
PROMPT, STYLE, SEED = "a big pink fish swimming right", "toon", 1
ICON = 400
BANNER = (1260, 540)


def enlarge(frame: np.ndarray, side: int) -> Image.Image:
    """Return a frame with every pixel enlarged."""
    return Image.fromarray(frame).resize((side, side), Image.Resampling.NEAREST)


def make_icon(frame: np.ndarray) -> Image.Image:
    """Return one frame on the background."""
    icon = Image.new("RGB", (ICON, ICON), BACKGROUND)
    side = 352
    icon.paste(enlarge(frame, side), ((ICON - side) // 2,) * 2)
    return icon


def make_banner(clip: np.ndarray) -> Image.Image:
    """Return a strip of frames under the name of the pack."""
    banner = Image.new("RGB", BANNER, BACKGROUND)
    draw, font = ImageDraw.Draw(banner), ImageFont.load_default(76)
    title = "AnimateDiff-Lightning"
    draw.text(((BANNER[0] - draw.textlength(title, font)) / 2, 70), title, INK, font)
    small = ImageFont.load_default(34)
    text = "video in 1, 2, 4 or 8 steps"
    draw.text(((BANNER[0] - draw.textlength(text, small)) / 2, 170), text, INK, small)
    side, gap, count = 192, 12, 6
    left = (BANNER[0] - count * side - (count - 1) * gap) // 2
    for n in range(count):
        frame = clip[round(n * (len(clip) - 1) / (count - 1))]
        banner.paste(enlarge(frame, side), (left + n * (side + gap), 270))
    return banner


def main() -> None:
    """Draw a clip, and write both pictures."""
    clip = Scene(STYLE).draw([PROMPT], 4, SEED)[-1]
    for name, picture in (("icon", make_icon(clip[6])), ("banner", make_banner(clip))):
        picture.save(FOLDER / f"{name}.png", optimize=True)
        print(f"wrote {FOLDER / name}.png")


if __name__ == "__main__":
    main()
