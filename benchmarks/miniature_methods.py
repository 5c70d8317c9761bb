"""Train what a distillation of the miniature is compared with, resumable like it.

    python benchmarks/miniature_methods.py single         # the stages of miniature on f_0 alone
    python benchmarks/miniature_methods.py consistency    # AnimateLCM's loss, as many iterations
    python benchmarks/miniature_methods.py discriminator  # miniature, and D in its last stage, too

All take the clips of docs/distil.md, "The same on the miniature", and work under torchrun. The
first four stages of `discriminator` are those of `miniature`: a copy of runs/distill without its
1-step student and its checkpoints saves their time.
"""

import argparse
from pathlib import Path

from animatediff_lightning.distill.models.devices import my_device
from animatediff_lightning.distill.train import config as train_config
from animatediff_lightning.distill.train import stages
from animatediff_lightning.distill.train.config import Phase, Stage

# after the MSE of the last stage of miniature
DISCRIMINATOR = (
    Phase(
        iterations=100,
        discriminator_head_start=30,
        conditional=True,
        learning_rate=1e-5,
        discriminator_learning_rate=3e-4,
    ),
    Phase(
        iterations=30,
        discriminator_head_start=10,
        conditional=False,
        learning_rate=1e-5,
        discriminator_learning_rate=3e-4,
        teacher_steps=4,
    ),
)
GRID = 50  # points of the consistency student's grid, as AnimateLCM has (arXiv 2402.00769)
RATE = 2e-5  # of the consistency student; at the others' 2e-4 its loss doubled and it drew nothing


def single(config):
    """Return the cross-model config on f_0 alone."""
    return config.model_copy(update={"slots": config.slots[:1], "out": Path("runs/distill_single")})


def discriminator(config):
    """Return the config whose last stage goes on against D after its MSE."""
    *others, last = config.stages
    mse = last.phases[0].model_copy(update={"loss": "mse"})
    last = last.model_copy(update={"loss": "adversarial", "phases": (mse, *DISCRIMINATOR)})
    return config.model_copy(
        update={"stages": (*others, last), "out": Path("runs/distill_discriminator")}
    )


def consistency(config):
    """Return one consistency stage over all the bases, as long as miniature_mse's together."""
    config = train_config.read_config(train_config.find_config("miniature_mse"))
    iterations = sum(p.iterations for stage in config.stages for p in stage.phases)
    stage = Stage(
        teacher_steps=GRID,
        student_steps=1,
        loss="consistency",
        cfg=config.stages[0].cfg,
        ema=0.95,
        phases=(Phase(iterations=iterations, learning_rate=RATE),),
    )
    return config.model_copy(update={"stages": (stage,), "out": Path("runs/distill_consistency")})


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    methods = {m.__name__: m for m in (single, consistency, discriminator)}
    parser.add_argument("method", choices=methods)
    options = parser.parse_args()
    config = methods[options.method](
        train_config.read_config(train_config.find_config("miniature"))
    )
    stages.run_stages(config, my_device("auto"))


if __name__ == "__main__":
    main()
