"""Pilots of distribution matching on the miniature: what keeps base models that it never sees?

    python benchmarks/miniature_distribution.py [--seed 1] [NAME ...]

Each variant trains an 8-step student (--start, default: the bundled one) for some minutes to draw
in 4, over the six base models of `miniature_mse`. It is measured on the base model and the captions
of the split's validation part while it trains; nothing of the test part is looked at. Resumable,
and works under torchrun, with one NAME at a time there. Writes
benchmarks/results/miniature_distribution.csv: a line for each measurement of every run in --work.
"""

import argparse
import csv
from pathlib import Path

from animatediff_lightning.distill.engine import distributed
from animatediff_lightning.distill.miniature import shipped
from animatediff_lightning.distill.models.devices import my_device
from animatediff_lightning.distill.train import config as train_config
from animatediff_lightning.distill.train import stages, validation
from animatediff_lightning.distill.train.config import Phase, Stage

RESULTS = Path(__file__).parent / "results" / "miniature_distribution.csv"
FROM, STEPS = 8, 4
# by what each differs from the first: of the stage, and of its phase
VARIANTS = {
    "plain": ({}, {}),
    "converged fake": ({}, {"iterations": 60, "fake_steps": 5, "fake_head_start": 10}),
    "real score of less guidance": ({"real_cfg": 1.5}, {"iterations": 60}),
    "a share of MSE": ({}, {"iterations": 60, "mse_weight": 3.0, "teacher_steps": 8}),
    "slow": ({}, {"iterations": 60, "learning_rate": 1e-4}),
    "noised more": ({"noise_above": 150}, {"iterations": 60}),
}
COLUMNS = ("variant", "seed", "iteration", "base", "moved", "frechet", "guidance", "landing")


def configure(name, seed, start, work):
    """Return the config of a variant."""
    of_stage, of_phase = VARIANTS[name]
    base = train_config.read_config(train_config.find_config("miniature_mse"))
    phase = Phase(**{"iterations": 100, "learning_rate": 3e-4, "fake_steps": 2} | of_phase)
    stage = Stage(
        teacher_steps=shipped.STEPS,
        student_steps=STEPS,
        loss="distribution",
        start=start,
        cfg=shipped.cfg(),
        ema=0.98,
        clip=1.0,
        phases=(phase,),
        **of_stage,
    )
    changes = {
        "stages": (stage,),
        "validation": base.validation.model_copy(update={"every": 20, "clips": 96}),
        "seed": seed,
        "out": folder(name, seed, work),
    }
    return base.model_copy(update=changes)


def folder(name, seed, work):
    return work / f"{name.replace(' ', '_')}-{seed}"


def write_table(work):
    """Write what every run has measured so far."""
    with RESULTS.open("w", newline="") as target:
        writer = csv.DictWriter(target, COLUMNS, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        for name in VARIANTS:
            for run in sorted(work.glob(folder(name, "*", work).name)):
                seed = run.name.rpartition("-")[2]
                lines = [line for line in validation.read_lines(run) if "stage" in line]
                writer.writerows({"variant": name, "seed": seed} | shown(line) for line in lines)


def shown(line):
    """Return a measurement as the table has it, lists as their values."""
    return {
        key: value
        if isinstance(value, (int, str))
        else " ".join(f"{v:.4g}" for v in ([value] if isinstance(value, float) else value))
        for key, value in line.items()
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(VARIANTS)}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=Path, default=shipped.student(FROM))
    parser.add_argument("--work", type=Path, default=Path("runs/distribution_pilots"))
    options = parser.parse_args()
    for name in options.names or VARIANTS:
        stages.run_stages(
            configure(name, options.seed, options.start, options.work), my_device("auto")
        )
    if distributed.rank() == 0:
        write_table(options.work)


if __name__ == "__main__":
    main()
