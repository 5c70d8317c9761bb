"""The paper's claims on the miniature: students against what costs as much, seen bases and unseen.

    animatediff-lightning train miniature_combined          # clips: docs/distil.md
    animatediff-lightning train miniature_mse               # MSE in every stage
    python benchmarks/miniature_methods.py distribution     # distribution matching in every stage
    animatediff-lightning train miniature                   # the paper's stages
    python benchmarks/miniature_methods.py single           # the same on f_0 alone
    python benchmarks/miniature_methods.py consistency      # AnimateLCM's loss
    python benchmarks/miniature_methods.py discriminator    # D in the last stage, too
    python benchmarks/miniature_claims.py

cross_discriminator: cross, whose last stage has no D, gone on against one. first_stage: the student
of 128 -> 32 steps, which has learned its teacher's guidance, at fewer steps: what the later stages
have to beat. Test captions (split.py), the same seeds everywhere. Every cell is kept in --work, so
that a run that was stopped goes on; methods whose files are missing are left out and named, but for
combined: its students ship. Processes may share the bases out (--base B --no-table), then once more
for the tables. Writes benchmarks/results/miniature_claims.csv and .md.
"""

import argparse
import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from animatediff_lightning.distill.evaluate import features, frechet
from animatediff_lightning.distill.files.digest import digest
from animatediff_lightning.distill.miniature import metrics, shipped, split, styles
from animatediff_lightning.distill.miniature.sample import Setting, sample_clips, show
from animatediff_lightning.distill.models.base_model import load_base, quiet_libraries
from animatediff_lightning.distill.models.latents import to_frames
from animatediff_lightning.motion_module import checkpoint
from animatediff_lightning.motion_module.files import atomic_path
from tqdm import tqdm

RESULTS = Path(__file__).parent / "results"
NAME, FIGURES = "miniature_claims", "## Figures"
SEEN, UNSEEN = ("plain", "photo", "toon"), split.BASES["test"]
STEPS = (8, 4, 2, 1)
TEACHER_STEPS, CFG = shipped.STEPS, shipped.cfg()
SHIPPED = "combined"  # the method whose students come with the package
OURS = ("combined", "distribution", "mse", "cross")  # compared with all others
METHODS = (*OURS, "cross_discriminator", "first_stage", "single", "consistency")
AT_ONCE = 20
OF_PROBE = features.network(None, torch.device("cpu"))
METRICS = ("motion", "strict", "jerk", "chroma", "grain", "colour", "style")
COLUMNS = (
    "method",
    "base",
    "seen",
    "steps",
    "n",
    "frechet",
    "frechet_true",
    "floor",
    "floor_true",
    "trajectory",
    *METRICS,
    "evaluations",
)
FRECHET = {"frechet": "again", "frechet_true": "truth", "trajectory": "teacher"}
VERDICTS = ("frechet", "frechet_true", "strict", "motion", "jerk", "chroma", "grain")
LOWER_IS_BETTER = {*FRECHET, "jerk", "chroma", "grain"}
OF_TRUE_CLIPS = {"chroma", "grain"}  # shares of true clips' figure: how far from 1 is compared
RESAMPLES = 200


@dataclass(frozen=True)
class Cell:
    """A method on a base at a step count; its clips' scores and features are kept in a file."""

    method: str
    module: Path
    base: str
    sampler: str
    steps: int
    cfg: float
    first_seed: int = 0

    @property
    def evaluations(self):
        return self.steps * (1 if self.cfg == 1 else 2)


def student(options, method, steps):
    """Return the file of a method's student; one that is not trained here may ship."""
    file = getattr(options, method) / "students" / f"{steps}step.safetensors"
    return file if method != SHIPPED or file.is_file() else shipped.student(steps)


def cells(options, base):
    """Return the cells of a base, those that need the fewest evaluations first."""
    naive = shipped.motion_module()
    found = [
        Cell("teacher", naive, base, "euler", TEACHER_STEPS, CFG),
        Cell("other seeds", naive, base, "euler", TEACHER_STEPS, CFG, features.OTHER_SEEDS),
    ]
    for steps in STEPS:
        found += [
            Cell("naive", naive, base, "euler", steps, 1.0),
            Cell("naive_cfg", naive, base, "euler", steps, CFG),
            Cell(
                "consistency",
                options.consistency / "students" / "consistency.safetensors",
                base,
                "lcm",
                steps,
                1.0,
            ),
            *(
                Cell(m, student(options, m, steps), base, "euler", steps, 1.0)
                for m in ("single", *OURS)
            ),
            Cell(
                "first_stage",
                options.cross / "students" / "32step.safetensors",
                base,
                "euler",
                steps,
                1.0,
            ),
        ]
    found.append(
        Cell(
            "cross_discriminator",
            options.cross_discriminator / "students" / "1step.safetensors",
            base,
            "euler",
            1,
            1.0,
        )
    )
    there = [c for c in found if c.module.is_file()]
    return sorted(there, key=lambda c: c.evaluations)


def measure(cell, options, scenes):
    """Return a cell's scores and features by name, (n,) or (n, d); goes on where it was."""
    weights = digest(cell.module)[:8]
    name = f"{cell.method}-{cell.steps}-{options.n}-{weights}.npz".replace(" ", "_")
    file = options.work / cell.base / name
    kept = dict(np.load(file)) if file.is_file() else {}
    done = len(kept.get("probe", ()))
    wanted = {"probe", *METRICS}
    if done == options.n and wanted <= set(kept):
        return kept
    if not wanted <= set(kept):
        kept, done = {}, 0
    base = load_base(shipped.base(cell.base))
    module = checkpoint.load(cell.module).build(dtype=torch.float32)
    setting = Setting(cell.base, cell.method, cell.sampler, cell.steps, cell.cfg, options.n)
    label = f"{cell.base}, {cell.method}, {cell.steps} steps"
    for first in tqdm(range(done, options.n, AT_ONCE), desc=label, leave=False, disable=None):
        few = scenes[torch.arange(first, min(first + AT_ONCE, options.n))]
        clips = sample_clips(base, module, few.captions(), setting, cell.first_seed + first)
        found = {k: v.numpy() for k, v in metrics.score(clips, few, cell.base).items()}
        found["probe"] = OF_PROBE(to_frames(clips)).numpy()
        kept = {k: np.concatenate([kept[k], v]) if k in kept else v for k, v in found.items()}
        with atomic_path(file) as temporary:
            np.savez(temporary, **kept)
    return kept


def truth(scenes, base, seed):
    """Return what the table compares with of true clips of the same captions."""
    found = features.of_true_clips(OF_PROBE, scenes.captions(), base, seed, AT_ONCE)
    return {"probe": found.numpy()}


def distance(a, b, rows=slice(None)):
    return frechet.between(*(torch.from_numpy(x["probe"][rows]) for x in (a, b)))


def verdict(name, mine, other, references):
    """Return how a method stands to another in a figure: better, worse or tie, and by how much.

    Paired by prompt and seed; beyond two standard errors, or it is a tie. The Frechet distance is
    one figure for all clips: its standard error is that of resampled clips.
    """
    if name in FRECHET:
        reference, generator = references[FRECHET[name]], np.random.default_rng(0)
        n = len(reference["probe"])
        gain = distance(mine, reference) - distance(other, reference)
        draws = [generator.integers(n, size=n) for _ in range(RESAMPLES)]
        spread = np.std(
            [distance(mine, reference, r) - distance(other, reference, r) for r in draws]
        )
    else:
        mine, other = (
            abs(x[name] - 1) if name in OF_TRUE_CLIPS else x[name].astype(float)
            for x in (mine, other)
        )
        apart = mine - other
        gain, spread = apart.mean(), apart.std(ddof=1) / len(apart) ** 0.5
    if abs(gain) <= 2 * spread:
        return "tie", gain
    return ("better" if (gain < 0) == (name in LOWER_IS_BETTER) else "worse"), gain


def row(cell, found, references):
    """Return a line of the table."""
    return {
        "method": cell.method,
        "base": cell.base,
        "seen": int(cell.base in SEEN),
        "steps": cell.steps,
        "n": len(found["probe"]),
        **{name: f"{distance(found, references[of]):.4g}" for name, of in FRECHET.items()},
        "floor": f"{distance(references['teacher'], references['again']):.4g}",
        "floor_true": f"{distance(references['truth'], references['other truth']):.4g}",
        **{m: f"{found[m].mean():.3f}" for m in METRICS},
        "evaluations": cell.evaluations,
    }


# what a method is compared with, at so many steps
CLAIMS = (
    ("naive", STEPS),
    ("naive_cfg", STEPS),
    ("consistency", (4, 2, 1)),
    ("single", STEPS),
    *((ours, STEPS) for ours in OURS),
    ("cross_discriminator", (1,)),
    ("first_stage", STEPS),
)


def claims(measured, references, ours):
    """Return lines of Markdown: how a method of ours stands to each other one."""
    lines = [f"| against | steps | base | {' | '.join(VERDICTS)} |", "|---" * 10 + "|"]
    for method, steps in CLAIMS:
        for count in steps:
            for base in SEEN + UNSEEN:
                mine, other = (measured.get((base, m, count)) for m in (ours, method))
                if mine is None or other is None or method == ours:
                    continue
                told = []
                for name in VERDICTS:
                    word, gain = verdict(name, mine, other, references[base])
                    told.append(f"{word} ({gain:+.2g})")
                lines.append(f"| {method} | {count} | {base} | {' | '.join(told)} |")
    return lines


def write(name, columns, rows, text):
    """Write a table as CSV, and as the lines of a Markdown file; print the latter."""
    with (RESULTS / f"{name}.csv").open("w", newline="") as target:
        writer = csv.DictWriter(target, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    lines = "\n".join([*text, FIGURES, "", show(rows), ""])
    (RESULTS / f"{name}.md").write_text(lines)
    print(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", action="append", help="only these bases")
    parser.add_argument("--no-table", action="store_true", help="measure, and write nothing else")
    parser.add_argument("--n", type=int, default=200, help="clips a cell")
    parser.add_argument("--work", type=Path, default=Path("runs/claims"))
    for method, folder in (
        ("combined", "distill_combined"),
        ("distribution", "distill_distribution"),
        ("mse", "distill_mse"),
        ("cross", "distill"),
        ("single", "distill_single"),
        ("consistency", "distill_consistency"),
        ("cross_discriminator", "distill_discriminator"),
    ):
        parser.add_argument(
            f"--{method.replace('_', '-')}", type=Path, default=Path("runs") / folder
        )
    options = parser.parse_args()
    quiet_libraries()
    scenes = metrics.held_out_scenes(options.n)
    rows, measured, references = [], {}, {}
    bases = options.base or SEEN + UNSEEN
    for base in bases:
        found = {c: measure(c, options, scenes) for c in cells(options, base)}
        measured |= {(base, c.method, c.steps): f for c, f in found.items()}
        references[base] = {
            "teacher": measured[base, "teacher", TEACHER_STEPS],
            "again": measured[base, "other seeds", TEACHER_STEPS],
            "truth": truth(scenes, base, 0),
            "other truth": truth(scenes, base, features.OTHER_SEEDS),
        }
        for cell, scores in sorted(found.items(), key=lambda i: (i[0].method, -i[0].steps)):
            if cell.method != "other seeds":
                rows.append(row(cell, scores, references[base]))
    if options.no_table:
        return
    home = truth(scenes, styles.F0, features.OTHER_SEEDS)
    far = [
        {"base": base, "frechet": f"{distance(references[base]['truth'], home):.4g}"}
        for base in bases
    ]
    trained = {method for _, method, _ in measured}
    missing = [m for m in METHODS if m not in trained]
    text = [
        "# The paper's claims on the miniature",
        "",
        f"Written by `benchmarks/miniature_claims.py`: {options.n} clips a cell, of the captions",
        "of the split's test part, to which the bases neon and wood belong, too (`split.py`).",
        "",
        "- frechet: Frechet distance in the probe's features to the teacher",
        f"  ({TEACHER_STEPS} Euler steps, cfg {CFG:g}) under other seeds; floor: the teacher's own",
        "  between two sets of seeds.",
        "- frechet_true: the same distance to rendered true clips of the same captions;",
        "  floor_true: between two sets of true clips.",
        "- trajectory: the distance to the teacher under the same seeds.",
        "- better, worse: beyond two standard errors, paired by prompt and seed; else tie. Of",
        "  chroma and grain, which are shares of true clips' figures, the distance from 1 counts.",
        "",
        *([f"Not at hand, and so not in here: {', '.join(missing)}.", ""] if missing else []),
        *(
            line
            for ours in OURS
            if ours in trained
            for line in (
                f"## {ours} against the others",
                "",
                *claims(measured, references, ours),
                "",
            )
        ),
    ]
    text += [
        f"## How far true clips of each base are from those of {styles.F0}",
        "",
        show(far),
        "",
    ]
    write(NAME, COLUMNS, rows, text)


if __name__ == "__main__":
    main()
