"""Train what a distillation of the miniature is compared with, resumable like it.

    python benchmarks/miniature_methods.py single         # the stages of miniature on f_0 alone
    python benchmarks/miniature_methods.py consistency    # AnimateLCM's loss, as many iterations
    python benchmarks/miniature_methods.py discriminator  # miniature, and D in its last stage, too
    python benchmarks/miniature_methods.py distribution   # miniature_combined without its MSE

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


def distribution(_config):
    """Return miniature_combined with distribution matching in its first stage, too."""
    config = train_config.read_config(train_config.find_config("miniature_combined"))
    first, second, *others = config.stages
    phase = second.phases[0].model_copy(update={"iterations": first.phases[0].iterations // 2})
    steps = {"teacher_steps": first.teacher_steps, "student_steps": first.student_steps}
    first = second.model_copy(update={**steps, "phases": (phase,)})
    return config.model_copy(
        update={"stages": (first, second, *others), "out": Path("runs/distill_distribution")}
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
    methods = {m.__name__: m for m in (single, consistency, discriminator, distribution)}
    parser.add_argument("method", choices=methods)
    parser.add_argument(
        "--seed", type=int, help="default: the config's; another one, another --out"
    )
    parser.add_argument("--out", type=Path, help="folder of the run; default: runs/distill_METHOD")
    options = parser.parse_args()
    config = methods[options.method](
        train_config.read_config(train_config.find_config("miniature"))
    )
    given = {"seed": options.seed, "out": options.out}
    config = config.model_copy(update={k: v for k, v in given.items() if v is not None})
    stages.run_stages(config, my_device("auto"))


if __name__ == "__main__":
    main()
