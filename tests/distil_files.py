"""Files of a distillation that takes seconds: true clips as pools, and a config over them.

What it trains on does not matter to these tests; real runs take the teacher's clips.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from animatediff_lightning.distill.cli.program import main
from animatediff_lightning.distill.data import latent_shards
from animatediff_lightning.distill.miniature import render, shipped, split, styles
from animatediff_lightning.distill.models.base_model import load_base
from animatediff_lightning.distill.models.latents import encode_images
from animatediff_lightning.distill.train.run_folder import Place, RunFolder

CLIPS = 8
CONFIG = """
out = "{out}"
teacher = "miniature"
global_batch = {global_batch}
clips_per_rank = 1
frames = 16
width = 16
height = 16
dtype = "float32"
gradient_checkpointing = {checkpointing}
save_every = 0
keep = 2
sheet_every = 2
sheet_prompts = ["a big red fish swimming right"]
pools = {{ plain = {{ shards = "{clips}/plain" }}, anime = {{ shards = "{clips}/toon" }} }}
slots = [
{slots}
]
discriminator = {{ head_channels = 32, head_blocks = 2 }}

[[stages]]
teacher_steps = 4
student_steps = 2
loss = "mse"
cfg = 1.5
ema = 0.5
phases = [{{ iterations = {iterations}, learning_rate = 1e-3 }}]

[[stages]]
teacher_steps = 2
student_steps = 1
loss = "adversarial"
timesteps = [250, 500, 750, 1000]
renoise = [10, 250, 500, 750]
no_caption = 0.2

[[stages.phases]]
iterations = {iterations}
learning_rate = 1e-3

[[stages.phases]]
iterations = {iterations}
learning_rate = 1e-3
conditional = false
renoise_weights = [5, 1, 1, 1]
"""


def copied(module):
    """Return a module's weights as they are now."""
    return {k: v.clone() for k, v in module.state_dict().items()}


def same(a, b):
    """Tell whether two sets of tensors are equal to the bit."""
    return a.keys() == b.keys() and all(torch.equal(t, b[k]) for k, t in a.items())


def train(write: Callable[..., Path], folder: Path, clips: Path, **options) -> tuple[Path, Path]:
    """Train a whole run of the config that `write` writes; return its folder and the config."""
    file = write(folder / "run.toml", folder / "out", clips, **options)
    assert main(["train", str(file), "--device", "cpu"]) == 0
    return folder / "out", file


def cut_and_go_on(run: tuple[Path, Path], folder: Path, left: Place, student: str) -> Path:
    """Go on in a copy of a run, as after a kill behind `left`; return the copy's folder."""
    whole, file = run
    again = RunFolder(folder / "out")
    shutil.copytree(whole, again.root)
    for place in again.places():
        if place > left:
            again.file(place).unlink()
    again.student(student).unlink()
    config = folder / "run.toml"
    config.write_text(file.read_text().replace(str(whole), str(again.root)))
    assert main(["train", str(config), "--device", "cpu"]) == 0
    return again.root


def write_pools(folder: Path) -> Path:
    """Write a pool of clips for each of two styles, in both orientations."""
    base = load_base(shipped.base())
    for number, style in enumerate(("plain", "toon")):
        generator = torch.Generator().manual_seed(number)
        scenes = split.draw_scenes(CLIPS, generator)
        clips = render.render(scenes, styles.STYLES[style], generator)
        members = []
        for i, caption in enumerate(scenes.captions()):
            for part, pixels in (("latents", clips[i]), ("flipped", clips[i].flip(-1))):
                latents = encode_images(base, pixels).numpy()
                array = latent_shards.encode_npy(latents.astype(np.float16))
                members.append((f"{i:06d}.{part}.npy", array))
            members.append((f"{i:06d}.txt", caption.encode()))
        (folder / style).mkdir(parents=True)
        latent_shards.write_tar(folder / style / "clips-000000.tar", members)
    return folder


def write_config(
    file: Path,
    out: Path,
    clips: Path,
    *,
    slots: int = 2,
    global_batch: int = 2,
    iterations: int = 2,
    checkpointing: bool = False,
) -> Path:
    """Write a config whose slots take the bases plain and toon by turns."""
    names = [("plain", "plain"), ("toon", "anime")] * (slots // 2)
    lines = [f'    {{ base = "miniature:{b}", pool = "{p}" }},' for b, p in names]
    file.write_text(
        CONFIG.format(
            out=out,
            clips=clips,
            slots="\n".join(lines),
            global_batch=global_batch,
            iterations=iterations,
            checkpointing=str(checkpointing).lower(),
        )
    )
    return file
