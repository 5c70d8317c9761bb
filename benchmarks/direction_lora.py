"""What a motion LoRA does that was trained on one direction of the miniature only.

    PYTHON benchmarks/direction_lora.py --base DIR --motion-module FILE [--direction left]

Headless, with the package installed. It writes true clips of the base's style that all move in one
direction, with captions that name none ("a red fish swimming"), trains a motion LoRA on them by
`train-motion`, and measures generated clips without it and with it: for those captions, and for
held-out captions that name another direction. Shares of clips by where they go (chance: 0.25 each
where all directions are alike); colour and jerk tell whether anything else broke.
"""

import argparse
import csv
from pathlib import Path

import av
import torch
from animatediff_lightning.distill.miniature import measure, metrics, render, split, styles, world
from animatediff_lightning.distill.miniature import sample as evaluate
from animatediff_lightning.distill.models.base_model import load_base
from animatediff_lightning.distill.train_motion import run
from animatediff_lightning.distill.train_motion.request import MotionRequest
from animatediff_lightning.motion_module import checkpoint, lora

FPS = 8


def turned(scenes, direction, generator):
    """Return the scenes' sprites on paths in one direction."""
    index = torch.full((len(scenes),), list(world.DIRECTIONS).index(direction))
    return world.place(scenes.colour, scenes.kind, scenes.size, index, scenes.says_size, generator)


def undirected(scenes):
    """Return captions without their last word, the direction."""
    return [caption.rpartition(" ")[0] for caption in scenes.captions()]


def write_clips(folder, count, style, direction, seed=0):
    """Write true clips as lossless videos, each with its caption beside it."""
    generator = torch.Generator().manual_seed(seed)
    scenes = turned(split.draw_scenes(count, generator), direction, generator)
    clips = render.render(scenes, styles.STYLES[style], generator)
    pixels = ((clips + 1) * 127.5).round().byte().permute(0, 1, 3, 4, 2).numpy()  # n f h w c
    folder.mkdir(parents=True, exist_ok=True)
    for i, caption in enumerate(undirected(scenes)):
        write_lossless(folder / f"{i:04d}.mkv", pixels[i])
        (folder / f"{i:04d}.txt").write_text(caption)


def write_lossless(path, frames):
    """Write RGB frames with FFV1; common codecs would halve the colours' 16 x 16 pixels."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("ffv1", rate=FPS)
        stream.width = stream.height = world.SIZE
        stream.pix_fmt = "bgr0"
        for pixels in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(stream.encode())


def train(options):
    """Train the LoRA unless it is there, and return its file."""
    file = options.work / f"{options.direction}.safetensors"
    if file.exists():
        return file
    folder = options.work / f"clips-{options.direction}"
    write_clips(folder, options.clips, options.style, options.direction)
    request = MotionRequest(
        data=str(folder),
        base=options.base,
        motion_module=options.motion_module,
        out=file,
        lora=options.rank,
        frames=world.FRAMES,
        fps=FPS,
        iterations=options.iterations,
        batch=options.batch,
        learning_rate=options.learning_rate,
        high_noise=1.5,
        ema=0.99,
        save_every=60,
        device="cpu",
    )
    run.train_motion(request)
    return file


def captions_of(options):
    """Return the two sets of captions, each with the scenes whose colours they name."""
    scenes = metrics.held_out_scenes(options.n)
    index = list(world.DIRECTIONS).index(options.direction)
    others = scenes[scenes.direction != index]
    return {"none": (scenes, undirected(scenes)), "another": (others, others.captions())}


def compare(options):
    """Return a row for each set of captions, without the LoRA and with it."""
    base = load_base(options.base)
    known = checkpoint.load(options.motion_module)
    found = lora.load(train(options))
    rows = []
    for named, (scenes, captions) in captions_of(options).items():
        for strength in (0.0, *options.strength):
            module = known.build(dtype=torch.float32)
            lora.merge(module, [(found, strength)] if strength else [])
            clips = sample(base, module, captions, options)
            rows.append(
                {
                    "caption names": named,
                    "strength": strength,
                    "clips": len(captions),
                    **judged(clips, scenes, options),
                }
            )
    return rows


def sample(base, module, captions, options):
    setting = evaluate.Setting(
        options.style, "", "euler", options.steps, options.cfg, len(captions)
    )
    size = 20  # clips at once
    parts = range(0, len(captions), size)
    return torch.cat(
        [
            evaluate.sample_clips(base, module, captions[i : i + size], setting, first_seed=i)
            for i in parts
        ]
    )


def judged(clips, scenes, options):
    """Return where clips go, whether they keep to what their captions say, and how smoothly."""
    found = measure.measure(clips)
    goes = {name: found.motion == i for i, name in enumerate(world.DIRECTIONS)}
    values = {f"goes {name}": hits.float() for name, hits in goes.items()}
    values |= {
        "faces its way": ((found.heading == found.motion) & (found.motion >= 0)).float(),
        "colour": (found.colour == scenes.colour).float(),
        "style": (found.style == list(styles.STYLES).index(options.style)).float(),
        "jerk": found.jerk,
    }
    return {name: round(value.mean().item(), 3) for name, value in values.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="benchmarks/results/direction_lora.csv")
    parser.add_argument("--base", type=Path, required=True, help="folder of a miniature base")
    parser.add_argument("--motion-module", type=Path, required=True)
    parser.add_argument("--style", default=styles.F0, choices=styles.STYLES, help="the base's")
    parser.add_argument("--direction", default="left", choices=world.DIRECTIONS)
    parser.add_argument("--work", type=Path, default=Path("runs/direction-lora"))
    parser.add_argument("--clips", type=int, default=64, help="to train on")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--iterations", type=int, default=400)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--n", type=int, default=100, help="clips to measure a cell")
    parser.add_argument("--strength", type=float, nargs="+", default=[0.8, 1.0])
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--cfg", type=float, default=2.5)
    options = parser.parse_args()
    rows = compare(options)
    print(evaluate.show(rows))
    Path(options.out).parent.mkdir(parents=True, exist_ok=True)
    with open(options.out, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
