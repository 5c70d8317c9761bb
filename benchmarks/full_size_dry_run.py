"""Two optimisation steps of each kind at SD1.5's full size, with random weights, and their memory.

    python benchmarks/full_size_dry_run.py --size 64              # on a CPU with 24 GB
    python benchmarks/full_size_dry_run.py --size 512 --clips 2   # on a GPU with 80 GB

Writes base model, motion module and clips with random weights and values into --work (3 GB), trains
them as `train` does, and adds a line for each kind of step to
benchmarks/results/full_size_dry_run.csv, beside what `plan` estimates.
"""

import argparse
import csv
import json
import platform
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from animatediff_lightning.distill.data import latent_shards
from animatediff_lightning.distill.models import sd15_config
from animatediff_lightning.distill.models.base_model import quiet_libraries
from animatediff_lightning.distill.models.devices import my_device
from animatediff_lightning.distill.train import config as train_config
from animatediff_lightning.distill.train import plan, stages
from animatediff_lightning.motion_module import checkpoint
from animatediff_lightning.motion_module.config import MotionModuleConfig
from animatediff_lightning.motion_module.module import MotionModule
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests import random_models

RESULT = Path(__file__).parent / "results" / "full_size_dry_run.csv"
COLUMNS = (
    "machine",
    "device",
    "loss",
    "frames",
    "size",
    "clips",
    "dtype",
    "seconds_a_step",
    "peak_gib",
    "planned_gib",
)
ITERATIONS = 2


def write_models(folder):
    """Write an SD1.5 with random weights as a diffusers folder, and a v2 motion module."""
    if folder.is_dir():
        return
    temporary = folder.with_name("part")
    shutil.rmtree(temporary, ignore_errors=True)
    torch.manual_seed(0)
    base = temporary / "base"
    random_models.write_tokenizer(base / "tokenizer")
    sd15_config.write_configs(base)
    for part, kind, config in (
        ("unet", UNet2DConditionModel, sd15_config.UNET),
        ("vae", AutoencoderKL, sd15_config.VAE),
    ):
        kind.from_config(config).half().save_pretrained(base / part)
    words = CLIPTextConfig(**sd15_config.TEXT_ENCODER)
    CLIPTextModel(words).half().save_pretrained(base / "text_encoder")
    module = MotionModule(MotionModuleConfig()).initialise().half()
    metadata = {"family": "AnimateDiff v2 (random weights)"}
    checkpoint.save(module, temporary / "v2.safetensors", metadata=metadata)
    temporary.rename(folder)


def write_clips(folder, count, frames, latents):
    """Write random clips as a pool."""
    generator = np.random.default_rng(0)
    members = []
    for clip in range(count):
        x0 = generator.standard_normal((frames, 4, latents, latents)).astype(np.float16)
        members.append((f"{clip:04d}.latents.npy", latent_shards.encode_npy(x0)))
        members.append((f"{clip:04d}.txt", b"noise"))
    folder.mkdir(parents=True)
    latent_shards.write_tar(folder / "clips-000000.tar", members)


def config_of(options, models, clips, out):
    stage = {"teacher_steps": 8, "student_steps": 4}
    phase = {"iterations": ITERATIONS, "learning_rate": 5e-7}
    return train_config.TrainConfig.model_validate(
        {
            "out": str(out),
            "teacher": str(models / "v2.safetensors"),
            "pools": {"noise": {"shards": str(clips), "flip": False}},
            "slots": [{"base": str(models / "base"), "pool": "noise"}],
            "stages": [
                {**stage, "loss": "mse", "cfg": 7.5, "phases": [phase]},
                {"teacher_steps": 4, "student_steps": 2, "loss": "adversarial", "phases": [phase]},
                {
                    "teacher_steps": 2,
                    "student_steps": 1,
                    "loss": "distribution",
                    "cfg": 7.5,
                    "phases": [{**phase, "fake_steps": 1}],
                },
            ],
            "global_batch": options.clips,
            "clips_per_rank": options.clips,
            "frames": options.frames,
            "width": options.size,
            "height": options.size,
            "dtype": options.dtype,
            "sheet_every": 0,
            "save_every": 1e9,
            "keep": 1,
        }
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=64, help="pixels of a side")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--clips", type=int, default=1)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--work", type=Path, default=Path("runs/full_size"))
    parser.add_argument("--machine", default=platform.processor() or platform.machine())
    options = parser.parse_args()
    quiet_libraries()
    models, clips, out = (options.work / name for name in ("models", "clips", "out"))
    for folder in (clips, out):
        shutil.rmtree(folder, ignore_errors=True)
    options.work.mkdir(parents=True, exist_ok=True)
    write_models(models)
    write_clips(clips, options.clips * ITERATIONS, options.frames, options.size // 8)
    config = config_of(options, models, clips, out)
    device = my_device("auto")
    stages.run_stages(config, device)
    with (out / "curves.csv").open() as file:
        curve = list(csv.DictReader(file))
    networks = plan.build_networks(config, {0})
    new = not RESULT.is_file()
    with RESULT.open("a", newline="") as target:
        writer = csv.DictWriter(target, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        for index, stage in enumerate(config.stages):
            # the first step of a process also makes what later ones use again
            step = [r for r in curve if int(r["stage"]) == index][-1]
            found = {
                "machine": options.machine,
                "device": device.type,
                "loss": stage.loss,
                "frames": options.frames,
                "size": options.size,
                "clips": options.clips,
                "dtype": options.dtype,
                "seconds_a_step": f"{float(step['seconds']):.1f}",
                "peak_gib": f"{float(step['peak_gib']):.1f}",
                "planned_gib": f"{plan.estimate_memory(config, stage, networks):.1f}",
            }
            writer.writerow(found)
            print(json.dumps(found))
    shutil.rmtree(out)


if __name__ == "__main__":
    main()
