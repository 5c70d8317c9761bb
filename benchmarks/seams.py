"""Seams of long clips: how much more a clip jumps where windows begin and end than elsewhere.

    PYTHON benchmarks/seams.py [--base BASE --motion-module FILE] [--prompt TEXT ...] [--frames 64]
        [--overlap 4] [--noise constant] [--seeds 2] [--out OUT.csv]
    python benchmarks/seams.py --base miniature:plain \
        --motion-module distill/miniature/weights/4step.safetensors \
        --out benchmarks/results/seams_miniature.csv            # what is committed

Headless, with the package installed; without files it makes the small random models. A window
border lies between two frames that not the same windows hold. The seam of a clip is the mean of
|x[f+1] - x[f]| over all borders, divided by the mean over all other pairs of neighbours, x being
the clean latents; 1 is a clip without seams. With independent noise the frames of a poor or random
module jump everywhere; `--noise constant` leaves the jumps that the motion module makes. "plain" is
the same clip without windows, cut at the same places, where the module has positions enough: what
the measure gives where nothing was fused.
"""

import argparse
import csv
import itertools
import statistics
import sys
from dataclasses import replace
from pathlib import Path

import torch
from animatediff_lightning.distill.miniature.names import base_path
from animatediff_lightning.distill.models.base_model import load_base
from animatediff_lightning.distill.sampling import sample
from animatediff_lightning.distill.sampling.request import ClipRequest
from animatediff_lightning.motion_module import checkpoint
from animatediff_lightning.motion_module.inject import MotionRun, inject
from animatediff_lightning.samplers import context, euler, noise, schedule
from step_time import median_interval

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from animatediff_lightning.distill.models.devices import choose_device, choose_dtype

from tests import random_models

PROMPTS = (
    "a red fish swimming left",
    "a big blue bird flying up",
    "a teal mouse running right",
    "a small green fish swimming down",
)
FIELDS = (
    "where",
    "frames",
    "length",
    "overlap",
    "fuse",
    "noise",
    "steps",
    "seeds",
    "prompts",
    "median",
    "low",
    "high",
)


def borders(plan, num_frames):
    """Return for each pair of neighbouring frames whether not the same windows hold them."""
    held = torch.zeros(len(plan), num_frames, dtype=torch.bool)
    held.scatter_(1, plan.indices, True)
    return (held[:, 1:] != held[:, :-1]).any(0)


def seam(x, border):
    """Return the mean jump of x, shape (frames, ...), at borders by the mean jump elsewhere."""
    jumps = (x[1:] - x[:-1]).abs().flatten(1).mean(1)
    return float(jumps[border].mean() / jumps[~border].mean())


def in_features(predict_eps, run, options):
    """Return predict_eps for a clip of any length, with windows inside the temporal attention."""
    steps = itertools.count()

    def predict(x, t):
        run.num_frames = len(x)
        run.windows = context.plan(len(x), options, next(steps)).to(x)
        return predict_eps(x, t)

    return predict


@torch.inference_mode()
def clip(base, motion_module, where, options, request, mode):
    """Return the clean latents of a clip, shape (frames, channels, h, w)."""
    generator = torch.Generator().manual_seed(request.seed)
    shape = (request.frames, mode, options.context_length, options.context_overlap, request.seed)
    sources = noise.noise_sources(*shape)
    x = sample.initial_noise(base, request, generator)[sources].to(base.device)
    run = MotionRun(request.frames if where == "plain" else options.context_length)
    predict = sample.eps_predictor(base, request.prompts, request)
    if where == "latents":
        predict = sample.in_windows(predict, options)
    if where == "features":
        predict = in_features(predict, run, options)
    injection = inject(base.unet, motion_module, run=run)
    try:
        return euler.sample(predict, x, schedule.trailing_timesteps(request.steps))
    finally:
        injection.eject()


def load(options):
    """Return the base model, the motion module and the request that all clips share."""
    made = None if options.base else random_models.ensure()
    known = checkpoint.load(options.motion_module or made.motion_module)
    device = choose_device(options.device)
    dtype = choose_dtype("auto", device)
    path = base_path(options.base) if options.base else made.base
    base = load_base(path, tokenizer=options.tokenizer, device=device, dtype=dtype)
    request = ClipRequest(
        tuple(options.prompt),
        steps=options.steps or known.steps or 4,
        cfg=1.0,
        frames=options.frames,
    )
    request = request.sized(base.default_size, base.latent_factor)
    return base, known.build(dtype=dtype).to(device), request


def compare(models, options):
    """Return a row for each place of the windows and each fuse: the median seam over all clips."""
    base, motion_module, request = models
    longest = motion_module.config.max_frames
    places = ["latents", "features", *(["plain"] if request.frames <= longest else [])]
    rows = []
    for fuse, where in itertools.product(options.fuse, places):
        cut = context.ContextOptions(options.length, options.overlap, "static", fuse)
        border = borders(context.plan(request.frames, cut), request.frames)
        pairs = itertools.product(options.prompt, range(options.seeds))
        requests = [replace(request, prompts=(p,), seed=s) for p, s in pairs]
        made = (clip(base, motion_module, where, cut, r, options.noise) for r in requests)
        seams = [seam(x.float(), border) for x in made]
        interval = (f"{n:.4f}" for n in (statistics.median(seams), *median_interval(seams)))
        shape = (*shape_of(options), fuse, options.noise, request.steps)
        rows.append((where, *shape, options.seeds, "; ".join(options.prompt), *interval))
        print(*rows[-1], sep="  ", flush=True)
    return rows


def shape_of(options):
    return options.frames, options.length, options.overlap


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="benchmarks/results/seams.csv")
    parser.add_argument("--base", help="SD1.5 checkpoint, diffusers folder or miniature:STYLE")
    parser.add_argument("--motion-module", type=Path)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--prompt", nargs="+", default=PROMPTS)
    parser.add_argument("--steps", type=int, help="default: those of the motion module's file")
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--length", type=int, default=16)
    parser.add_argument("--overlap", type=int, default=4)
    parser.add_argument("--fuse", nargs="+", default=["flat", "pyramid"], choices=context.FUSES)
    parser.add_argument("--noise", default=noise.INDEPENDENT, choices=noise.MODES)
    parser.add_argument("--seeds", type=int, default=2, help="clips of each prompt")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    if (options.base is None) != (options.motion_module is None):
        parser.error("--base and --motion-module go together.")
    if options.frames <= options.length:
        parser.error("--frames must exceed --length, or there are no borders.")
    rows = compare(load(options), options)
    models = options.base or "random", (options.motion_module or Path("random")).name
    with open(options.out, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow((*FIELDS, "base", "motion_module"))
        writer.writerows((*row, *models) for row in rows)


if __name__ == "__main__":
    main()
