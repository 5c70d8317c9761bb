"""Train what a distillation of the miniature is compared with, resumable like it.

    python benchmarks/miniature_methods.py single       # the same stages on f_0 alone
    python benchmarks/miniature_methods.py consistency  # AnimateLCM's loss, as many iterations

By default with the stages of miniature_mse (--config miniature: those with D). Both take the
clips of the README's section on distillation, and work under torchrun.
"""

import argparse
from pathlib import Path

from animatediff_lightning.distill import distillation, train_config
from animatediff_lightning.distill.devices import my_device
from animatediff_lightning.distill.train_config import Phase, Stage

GRID = 50  # points of the consistency student's grid, as AnimateLCM has (arXiv 2402.00769)
RATE = 2e-5  # of the consistency student; at the others' 2e-4 its loss doubled and it drew nothing


def single(config):
    """Return the cross-model config on f_0 alone."""
    return config.model_copy(update={"slots": config.slots[:1], "out": Path("runs/distill_single")})


def consistency(config):
    """Return one consistency stage over all the bases, as long as all other stages together."""
    iterations = sum(p.iterations for stage in config.stages for p in stage.phases)
    stage = Stage(
        teacher_steps=GRID, student_steps=1, loss="consistency", cfg=config.stages[0].cfg, ema=0.95,
        phases=(Phase(iterations=iterations, learning_rate=RATE),),
    )  # fmt: skip
    return config.model_copy(update={"stages": (stage,), "out": Path("runs/distill_consistency")})


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("method", choices=("single", "consistency"))
    parser.add_argument("--config", default="miniature_mse", help="whose stages (miniature_mse)")
    options = parser.parse_args()
    method = {"single": single, "consistency": consistency}[options.method]
    config = method(train_config.read(train_config.find(options.config)))
    distillation.run(config, my_device("auto"))


if __name__ == "__main__":
    main()
