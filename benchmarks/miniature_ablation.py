"""Choices that the papers leave open, each on the miniature's last stage, 2 -> 1, from one start.

    animatediff-lightning train miniature_mse      # its 2-step student is where every arm starts
    python benchmarks/miniature_ablation.py        # resumable; --arm and --seed pick, --no-table

Every arm changes one thing of `adversarial`: what D does in the last stage of `discriminator`
(miniature_methods.py), shorter, at the papers' timesteps and t*, without D's head start, and always
with the 2-step teacher, whose motion module D starts from, too. `still` holds the student where it
starts, to see what D learns by itself; `without_ema` needs no training of its own. Two seeds an
arm: what lies within the seeds' own spread is no difference. Writes
benchmarks/results/miniature_ablation.csv and .md.
"""

import argparse
import csv
from dataclasses import dataclass
from pathlib import Path

import miniature_claims as claims
import miniature_methods
import numpy as np
import torch
from animatediff_lightning.distill import distillation, train_config
from animatediff_lightning.distill.base_models import quiet_libraries
from animatediff_lightning.distill.devices import my_device
from animatediff_lightning.distill.miniature import metrics, shipped
from animatediff_lightning.distill.run_folder import RunFolder
from animatediff_lightning.motion_module import checkpoint

ITERATIONS = (80, 40)  # of the conditional and of the unconditional phase
RATE = 2e-5  # of the student
TIMESTEPS, RENOISE = (250, 500, 750, 1000), (10, 250, 500, 750)
WEIGHTS = ((), (5.0, 1.0, 1.0, 1.0))  # of each t*, in each phase
BASES = ("plain", "toon", "neon")  # two seen, one not
START = Path("runs/distill_mse/students/2step.safetensors")
FIGURES = ("frechet", "strict", "motion", "jerk", "chroma")
REFERENCE = "adversarial"
COLUMNS = ("arm", "seed", "base", "n", *FIGURES, "d_gap", "d_gap_error")
LAST = 40  # updates whose mean d_gap is told


def each_phase(stage, **changes):
    """Return a stage with the same changes to each of its phases."""
    phases = tuple(p.model_copy(update=changes) for p in stage.phases)
    return stage.model_copy(update={"phases": phases})


def adversarial(stage):
    """Return the stage as the papers have it, shortened, taught by the same teacher throughout."""
    judged = [p for p in stage.phases if stage.loss_of(p) == "adversarial"]
    phases = [
        p.model_copy(
            update={
                "iterations": n, "teacher_steps": None, "learning_rate": RATE,
                "discriminator_head_start": 0, "renoise_weights": weights,
            }
        )
        for p, n, weights in zip(judged, ITERATIONS, WEIGHTS, strict=True)
    ]  # fmt: skip
    update = {"phases": tuple(phases), "timesteps": TIMESTEPS, "renoise": RENOISE}
    return stage.model_copy(update=update)


def conditional_only(stage):
    phase = stage.phases[0].model_copy(update={"iterations": sum(ITERATIONS)})
    return stage.model_copy(update={"phases": (phase,)})


def without_renoise(stage):
    return each_phase(stage, renoise_weights=()).model_copy(update={"renoise": ()})


def mse(stage):
    stage = without_renoise(conditional_only(stage)).model_copy(update={"loss": "mse"})
    return each_phase(stage, discriminator_learning_rate=None)


ARMS = {
    REFERENCE: lambda stage: stage,
    "two_discriminator_updates": lambda stage: each_phase(stage, discriminator_steps=2),
    "conditional_only": conditional_only,
    "without_renoise": without_renoise,
    "mse": mse,
    "still": lambda stage: each_phase(stage, learning_rate=1e-12),
}
FREE = {"without_ema": REFERENCE}  # arms that are another look at a trained one


@dataclass(frozen=True)
class Run:
    """An arm under a seed."""

    arm: str
    seed: int
    root: Path
    start: Path

    @property
    def folder(self):
        return self.root / f"{FREE.get(self.arm, self.arm)}-{self.seed}"

    def student(self):
        """Train what is missing and return the student's file."""
        config = train_config.read(train_config.find("miniature"))
        stage = adversarial(miniature_methods.discriminator(config).stages[-1])
        stage = ARMS[FREE.get(self.arm, self.arm)](stage)
        config = config.model_copy(
            update={
                "stages": (stage,), "teacher": str(self.start), "out": self.folder,
                "seed": self.seed, "sheet_every": 0,
            }
        )  # fmt: skip
        folder = RunFolder(self.folder)
        if not folder.student(stage.name).is_file():
            distillation.run(config, my_device("auto"))
        if self.arm not in FREE:
            return folder.student(stage.name)
        file = self.folder / f"{self.arm}.safetensors"
        module = checkpoint.load(folder.student(stage.name)).build(dtype=torch.float32)
        module.load_state_dict(folder.load(folder.newest())["student"])
        return checkpoint.save(module, file, metadata={"steps": stage.student_steps})


def measure(run, student, base, options, scenes):
    """Return a line of the table: one run's student at one step on one base."""
    cells = [
        claims.Cell(f"{run.arm}-{run.seed}", student, base, "euler", 1, 1.0),
        claims.Cell(
            "teacher", shipped.motion_module(), base, "euler", claims.TEACHER_STEPS, claims.CFG
        ),
    ]
    found, teacher = (claims.measure(cell, options, scenes, None) for cell in cells)
    means = {f: found[f].mean() for f in FIGURES if f != "frechet"}
    figures = {"frechet": claims.distance(found, teacher)} | means
    line = {"arm": run.arm, "seed": run.seed, "base": base, "n": options.n}
    return line | {f: f"{figures[f]:.4g}" for f in FIGURES} | discriminator_of(run)


def discriminator_of(run):
    """Return how far apart D's logits lay in the last updates, and that mean's standard error."""
    with (run.folder / "curves.csv").open(newline="") as source:
        gaps = [float(row["d_gap"]) for row in csv.DictReader(source) if row["d_gap"]][-LAST:]
    if not gaps:
        return {"d_gap": "", "d_gap_error": ""}
    error = np.std(gaps, ddof=1) / len(gaps) ** 0.5
    return {"d_gap": f"{np.mean(gaps):.2g}", "d_gap_error": f"{error:.1g}"}


def differences(rows):
    """Return lines of Markdown: each arm's mean less the reference's, and what the seeds spread.

    The spread of a figure is the largest distance between two seeds of one arm on one base.
    """
    lines = [f"| arm | base | {' | '.join(FIGURES)} |", "|---" * (2 + len(FIGURES)) + "|"]
    for base in BASES:
        by_arm = {arm: [r for r in rows if (r["arm"], r["base"]) == (arm, base)]
                  for arm in dict.fromkeys(r["arm"] for r in rows)}  # fmt: skip
        values = {(arm, f): [float(r[f]) for r in found]
                  for arm, found in by_arm.items() for f in FIGURES}  # fmt: skip
        spread = {f: max(np.ptp(v) for (_, name), v in values.items() if name == f)
                  for f in FIGURES}  # fmt: skip
        for arm in by_arm:
            if arm == REFERENCE:
                continue
            told = []
            for f in FIGURES:
                gain = np.mean(values[arm, f]) - np.mean(values[REFERENCE, f])
                word = "beyond" if abs(gain) > spread[f] else "within"
                told.append(f"{gain:+.2g}, {word} {spread[f]:.2g}")
            lines.append(f"| {arm} | {base} | {' | '.join(told)} |")
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arm", action="append", choices=(*ARMS, *FREE), help="only these")
    parser.add_argument("--seed", action="append", type=int, help="only these; default 0 and 1")
    parser.add_argument("--no-table", action="store_true", help="measure, and write nothing else")
    parser.add_argument("--n", type=int, default=100, help="clips a cell")
    parser.add_argument("--work", type=Path, default=Path("runs/claims"))
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--start", type=Path, default=START)
    options = parser.parse_args()
    quiet_libraries()
    scenes = metrics.held_out_scenes(options.n)
    rows = []
    for arm in options.arm or (*ARMS, *FREE):
        for seed in options.seed or (0, 1):
            run = Run(arm, seed, options.out, options.start)
            student = run.student()
            rows += [measure(run, student, base, options, scenes) for base in BASES]
    if options.no_table:
        return
    text = [
        "# The open choices on the miniature's last stage",
        "",
        f"Written by `benchmarks/miniature_ablation.py`: 2 -> 1 steps, {sum(ITERATIONS)} updates",
        f"of 8 clips, {options.n} held-out captions a base. Each arm's mean over its seeds less",
        f"that of `{REFERENCE}`; beyond or within: the largest distance of two seeds of one arm.",
        "`still` is where every arm begins: an arm with a larger Frechet distance than that has",
        "gone away from the teacher in these few updates, and its lead is a smaller loss.",
        "",
        *differences(rows),
        "",
    ]
    claims.write("miniature_ablation", COLUMNS, rows, text)


if __name__ == "__main__":
    main()
