"""Choices that the papers leave open, on the miniature's stages 8 -> 4 and 2 -> 1.

    python benchmarks/miniature_ablation.py    # resumable; --steps, --arm, --seed pick; --no-table

Takes the clips of docs/distil.md, "The same on the miniature". Every arm starts from the shipped
student of twice the steps, which is its teacher, too, and whose motion module D starts from; it
updates the student as often as all the others do, and changes one thing of `adversarial`: a head
start for D, then D, then a head start for D', then D'; on 2 -> 1 at the papers' timesteps and t*.
`without_ema` is another look at that arm, `start` is the student that every arm begins with, at
half its steps.
Two seeds an arm: what lies within the seeds' own spread is no difference. Writes
benchmarks/results/miniature_ablation.csv and .md.
"""

import argparse
import csv
from dataclasses import dataclass
from pathlib import Path

import miniature_claims as claims
import numpy as np
import torch
from animatediff_lightning.distill.miniature import metrics, shipped, split
from animatediff_lightning.distill.models.base_model import quiet_libraries
from animatediff_lightning.distill.models.devices import my_device
from animatediff_lightning.distill.train import config as train_config
from animatediff_lightning.distill.train import stages
from animatediff_lightning.distill.train.config import Phase, Stage
from animatediff_lightning.distill.train.run_folder import RunFolder
from animatediff_lightning.motion_module import checkpoint

UPDATES = (40, 30)  # of the student, in the conditional and in the unconditional phase
HEAD_STARTS = (40, 10)  # iterations before them, of D alone
RATE, RATE_OF_D, EMA = 1e-5, 3e-4, 0.98  # as in distill/train/configs/miniature.toml
TIMESTEPS, RENOISE = (250, 500, 750, 1000), (10, 250, 500, 750)  # of 2 -> 1
WEIGHTS = ((), (5.0, 1.0, 1.0, 1.0))  # of each t*, in each phase
BASES = ("plain", "toon", *split.BASES["validation"])  # two seen, one not
FIGURES = ("frechet", "frechet_teacher", "strict", "motion", "jerk", "chroma")
REFERENCE, START, WITHOUT_EMA = "adversarial", "start", "without_ema"
COLUMNS = ("steps", "arm", "seed", "base", "n", *FIGURES, "d_gap", "d_gap_error")


def adversarial(steps):
    """Return a stage that halves the steps, against D and then D'."""
    phases = tuple(
        Phase(
            iterations=head_start + updates,
            discriminator_head_start=head_start,
            conditional=conditional,
            learning_rate=RATE,
            discriminator_learning_rate=RATE_OF_D,
            renoise_weights=weights if steps == 1 else (),
        )
        for head_start, updates, conditional, weights in zip(
            HEAD_STARTS, UPDATES, (True, False), WEIGHTS, strict=True
        )
    )
    last = {"timesteps": TIMESTEPS, "renoise": RENOISE} if steps == 1 else {}
    return Stage(
        teacher_steps=2 * steps,
        student_steps=steps,
        loss="adversarial",
        phases=phases,
        ema=EMA,
        **last,
    )


def each_phase(stage, **changes):
    """Return a stage with the same changes to each of its phases."""
    phases = tuple(p.model_copy(update=changes) for p in stage.phases)
    return stage.model_copy(update={"phases": phases})


def two_discriminator_updates(stage):
    return each_phase(stage, discriminator_steps=2)


def conditional_only(stage):
    iterations = HEAD_STARTS[0] + sum(UPDATES)
    phase = stage.phases[0].model_copy(update={"iterations": iterations})
    return stage.model_copy(update={"phases": (phase,)})


def without_renoise(stage):
    return each_phase(stage, renoise_weights=()).model_copy(update={"renoise": ()})


def mse(stage):
    phase = Phase(iterations=sum(UPDATES), learning_rate=RATE)
    return stage.model_copy(update={"loss": "mse", "phases": (phase,)})


CHANGES = {
    f.__name__: f for f in (two_discriminator_updates, conditional_only, without_renoise, mse)
}
ARMS = {  # of each number of the student's steps, in the order of the table
    4: (REFERENCE, "two_discriminator_updates", "conditional_only", "mse", WITHOUT_EMA, START),
    1: (REFERENCE, "without_renoise", START),
}


@dataclass(frozen=True)
class Run:
    """An arm under a seed."""

    steps: int
    arm: str
    seed: int
    root: Path

    @property
    def teacher(self):
        return shipped.student(2 * self.steps)

    @property
    def folder(self):
        trained = REFERENCE if self.arm == WITHOUT_EMA else self.arm
        return self.root / f"{self.steps}step" / f"{trained}-{self.seed}"

    def student(self):
        """Train what is missing and return the student's file."""
        if self.arm == START:
            return self.teacher
        stage = adversarial(self.steps)
        stage = CHANGES[self.arm](stage) if self.arm in CHANGES else stage
        config = train_config.read_config(train_config.find_config("miniature")).model_copy(
            update={
                "stages": (stage,),
                "teacher": str(self.teacher),
                "out": self.folder,
                "seed": self.seed,
                "sheet_every": 0,
            }
        )
        folder = RunFolder(self.folder)
        if not folder.student(stage.name).is_file():
            stages.run_stages(config, my_device("auto"))
        if self.arm != WITHOUT_EMA:
            return folder.student(stage.name)
        file = self.folder / f"{self.arm}.safetensors"
        module = checkpoint.load(folder.student(stage.name)).build(dtype=torch.float32)
        module.load_state_dict(folder.load(folder.newest())["student"])
        return checkpoint.save(module, file, metadata={"steps": stage.student_steps})


def measure(run, student, base, options, scenes):
    """Return a line of the table: one run's student at its steps on one base."""
    name = f"{run.arm}-{run.seed}"
    cells = [
        claims.Cell(name, student, base, "euler", run.steps, 1.0),
        claims.Cell(
            "teacher", shipped.motion_module(), base, "euler", claims.TEACHER_STEPS, claims.CFG
        ),
        claims.Cell("cross", run.teacher, base, "euler", 2 * run.steps, 1.0),
    ]
    found, *teachers = (claims.measure(cell, options, scenes) for cell in cells)
    apart = (claims.distance(found, teacher) for teacher in teachers)
    figures = dict(zip(FIGURES, apart, strict=False))
    figures |= {f: found[f].mean() for f in FIGURES if f not in figures}
    line = {"steps": run.steps, "arm": run.arm, "seed": run.seed, "base": base, "n": options.n}
    return line | {f: f"{figures[f]:.4g}" for f in FIGURES} | discriminator_of(run)


def discriminator_of(run):
    """Return how far apart the last D's logits lay while the student moved; that mean's error."""
    gaps = []
    if run.arm != START:
        with (run.folder / "curves.csv").open(newline="") as source:
            gaps = [float(row["d_gap"]) for row in csv.DictReader(source) if row["d_gap"]]
        gaps = gaps[-UPDATES[-1] :]
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
        by_arm = {
            arm: [r for r in rows if (r["arm"], r["base"]) == (arm, base)]
            for arm in dict.fromkeys(r["arm"] for r in rows)
        }
        values = {
            (arm, f): [float(r[f]) for r in found] for arm, found in by_arm.items() for f in FIGURES
        }
        spread = {
            f: max(np.ptp(v) for (_, name), v in values.items() if name == f) for f in FIGURES
        }
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
    parser.add_argument("--steps", action="append", type=int, choices=ARMS, help="only these")
    parser.add_argument(
        "--arm", action="append", choices=sorted({*ARMS[4], *ARMS[1]}), help="only these"
    )
    parser.add_argument("--seed", action="append", type=int, help="only these; default 0 and 1")
    parser.add_argument("--no-table", action="store_true", help="measure, and write nothing else")
    parser.add_argument("--n", type=int, default=100, help="clips a cell")
    parser.add_argument("--work", type=Path, default=Path("runs/claims"))
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    options = parser.parse_args()
    quiet_libraries()
    scenes = metrics.held_out_scenes(options.n, "validation")
    rows = []
    for steps in options.steps or ARMS:
        for arm in ARMS[steps]:
            if arm not in (options.arm or ARMS[steps]):
                continue
            for seed in (0,) if arm == START else options.seed or (0, 1):
                run = Run(steps, arm, seed, options.out)
                student = run.student()
                rows += [measure(run, student, base, options, scenes) for base in BASES]
    if options.no_table:
        return
    text = [
        "# The open choices on the miniature",
        "",
        "Written by `benchmarks/miniature_ablation.py`: the student is updated "
        f"{sum(UPDATES)} times by 8 clips,",
        f"{options.n} validation captions a base. Each arm's mean over its seeds less that of",
        f"`{REFERENCE}`; beyond or within: the largest distance of two seeds of one arm.",
        f"frechet: to the undistilled module at {claims.TEACHER_STEPS} steps with guidance;",
        "frechet_teacher: to the stage's own teacher at its steps, which is what the arms imitate;",
        f"`{START}`: where all begin; d_gap: how far apart the last D's logits lay.",
        "",
    ]
    for steps in options.steps or ARMS:
        text += [
            f"## {2 * steps} -> {steps}",
            "",
            *differences([r for r in rows if r["steps"] == steps]),
            "",
        ]
    claims.write("miniature_ablation", COLUMNS, rows, text)


if __name__ == "__main__":
    main()
