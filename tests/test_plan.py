"""`plan`: what a run would need, told from shapes alone, before any file is there."""

import itertools

import pytest
import torch
from animatediff_lightning.distill.cli.program import main
from animatediff_lightning.distill.miniature import models
from animatediff_lightning.distill.miniature.names import motion_module_path
from animatediff_lightning.distill.train import config as train_config
from animatediff_lightning.distill.train import memory_estimate, plan
from animatediff_lightning.distill.train.config import TrainConfig
from animatediff_lightning.distill.train.memory_estimate import Shapes
from animatediff_lightning.motion_module import checkpoint
from animatediff_lightning.motion_module.inject import inject
from animatediff_lightning.motion_module.module import MotionModule

pytestmark = pytest.mark.slow


def config_of(name, **changes):
    return train_config.read_config(train_config.find_config(name)).model_copy(update=changes)


def test_the_papers_run_is_planned_without_its_files(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "paper", "--world-size", "64"]) == 0
    told = capsys.readouterr().out
    assert "64 processes, 256 clips a step: 4 accumulations of 1." in told
    # table 1, eight times
    assert "rank 0, 1, 8, 9, 16, 17, 24, 25 and 8 more: " in told
    assert "counterfeitV30_v30.safetensors <- anime" in told
    assert "trained: 453,209,280 parameters of the motion module" in told  # AnimateDiff v2's
    for line in (
        "128 -> 32  mse           2000 steps,   512,000 clips",
        "2 -> 1   adversarial   3000 steps,   768,000 clips",
    ):
        assert line in told
    assert "missing files (10):" in told
    assert "  data/webvid" in told


def test_fewer_processes_than_bases_take_several_each(capsys):
    assert main(["plan", "miniature", "--world-size", "2"]) == 0
    first, second = capsys.readouterr().out.splitlines()[1:3]
    assert first.count("miniature:") == second.count("miniature:") == 4


def test_what_does_not_divide_is_refused(capsys):
    assert main(["plan", "paper", "--world-size", "7"]) == 2
    told = capsys.readouterr().err
    assert "nothing was started" in told
    assert "7" in told


def test_frozen_parameters_are_those_of_the_models():
    found = plan.build_networks(config_of("miniature"), {0, 2})
    parts = (models.build_unet(), models.build_text_encoder())
    one = sum(p.numel() for part in parts for p in part.parameters())
    assert found.frozen == 2 * one  # plain, which D starts from too, and photo


def estimate(**changes):
    wanted = config_of("miniature", **changes)
    return plan.estimate_memory(wanted, wanted.stages[1], plan.build_networks(wanted, {0}))


def test_memory_grows_with_clips_and_shrinks_with_checkpointing_and_bfloat16():
    one, four = estimate(clips_per_rank=1), estimate(clips_per_rank=4)
    assert one < four
    assert estimate(clips_per_rank=4, gradient_checkpointing=True) < four
    assert estimate(clips_per_rank=4, dtype="bfloat16") < four


@pytest.mark.parametrize("clips", [1, 3])
def test_activations_are_about_those_that_a_real_forward_keeps(clips):
    unet = models.build_unet().requires_grad_(False)
    module = MotionModule(checkpoint.load(motion_module_path("miniature")).config)
    shapes = Shapes(clips, 16, 8, 8, 16, torch.float32, checkpointing=False)
    real = on_cpu(unet, module, shapes)
    # without a device, some kernels are taken apart and keep a little more
    assert real <= memory_estimate.of_student(unet.to("meta"), module.to("meta"), shapes)
    assert memory_estimate.of_student(unet, module, shapes) <= 1.1 * real


def on_cpu(unet, module, shapes):
    """Return the bytes that autograd keeps of a forward of real tensors."""
    weights = [p for network in (unet, module) for p in network.parameters()]
    seen, kept = {p.untyped_storage().data_ptr() for p in weights}, []

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            kept.append((storage.nbytes(), tensor))
        return tensor

    injection = inject(unet, module, num_frames=shapes.frames)
    frames = shapes.clips * shapes.frames
    x = torch.randn(frames, unet.config.in_channels, shapes.height, shapes.width)
    text = torch.randn(frames, shapes.tokens, unet.config.cross_attention_dim)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        unet(x, 500, text)
    injection.eject()
    return sum(size for size, _ in kept)


def test_the_process_that_holds_the_most_is_told(capsys):
    """A process of a base model that D does not start from holds two."""
    assert main(["plan", "paper", "--world-size", "8"]) == 0
    assert "frozen: at most 2,132,470,614 a process" in capsys.readouterr().out


def test_a_size_that_no_latent_has_is_refused(tmp_path, capsys):
    file = tmp_path / "paper.toml"
    file.write_text(
        train_config.find_config("paper").read_text().replace("width = 512", "width = 500")
    )
    assert main(["plan", str(file), "--world-size", "8"]) == 2
    assert "width must be a multiple of 8, not 500; try 496" in capsys.readouterr().err


def test_a_brace_pattern_is_here_when_its_shards_are(tmp_path):
    for number in range(2):
        (tmp_path / f"clips-{number}.tar").touch()
    pools = {
        "a": {"shards": f"{tmp_path}/clips-{{0..1}}.tar"},
        "b": {"shards": "http://x/c.tar"},
        "c": {"shards": f"{tmp_path}/clips-{{0..2}}.tar"},
    }
    table = config_of("miniature").model_dump()
    for slot, pool in zip(table["slots"], itertools.cycle(pools), strict=False):
        slot["pool"] = pool
    config = TrainConfig.model_validate(table | {"pools": pools})
    assert plan.list_missing_files(config) == [pools["c"]["shards"]]
