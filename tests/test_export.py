"""`export`: a run's students in both released layouts, recognised by what reads such files."""

import pytest
import torch
from animatediff_lightning.distill.cli import main
from animatediff_lightning.distill.miniature import shipped
from animatediff_lightning.distill.named_models import motion_module_path
from animatediff_lightning.distill.run_folder import RunFolder
from animatediff_lightning.motion_module import checkpoint

TOLD = {
    "family": "AnimateDiff-Lightning (adversarial)", "cfg": 1, "loss": "adversarial",
    "bases": "plain, toon", "schedule": "linear betas 0.00085 to 0.012, trailing", "frames": 16,
    "iterations": 6, "global_batch": 8, "seed": 0, "training": "0123456789ab",
}  # fmt: skip


@pytest.fixture
def run(tmp_path):
    """A run's folder with two students, as `train` leaves them."""
    folder = RunFolder(tmp_path / "run")
    module = checkpoint.load(motion_module_path("miniature")).build(dtype=torch.float32)
    for steps in (1, 4):
        told = TOLD | {"steps": steps, "teacher_steps": 2 * steps}
        folder.save_student(f"{steps}step", module, told)
    return folder.root


def test_both_layouts_hold_the_same_and_tell_their_steps(run, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["export", str(run), "--out", str(out), "--name", "toy"]) == 0
    names = [f"toy_{n}step_{layout}" for n in (4, 1) for layout in ("comfyui", "diffusers")]
    assert [line.split("/")[-1] for line in capsys.readouterr().out.splitlines()] == [
        *(f"{name}.safetensors" for name in names), "README.md"
    ]  # fmt: skip
    wanted = checkpoint.load(motion_module_path("miniature")).build(dtype=torch.float16)
    for name in names:
        known = checkpoint.load(out / f"{name}.safetensors")
        assert known.layout == name.split("_")[-1]
        assert known.steps == int(name.split("_")[1][0])
        assert known.metadata["training"] == TOLD["training"]
        found = known.build(dtype=torch.float16).state_dict()
        assert all(torch.equal(found[k], t) for k, t in wanted.state_dict().items())
    card = (out / "README.md").read_text()
    assert "| toy_4step | 4 | 8 steps | 6 | adversarial |" in card
    assert "plain, toon" in card


def test_nothing_is_overwritten_unasked(run, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["export", str(run), "--out", str(out)]
    assert main(command) == 0
    assert main(command) == 2
    assert "pass --force to overwrite it" in capsys.readouterr().err
    assert main([*command, "--force", "--dtype", "float32"]) == 0
    known = checkpoint.load(out / "animatediff_lightning_4step_comfyui.safetensors")
    assert known.dtype == torch.float32


def test_the_miniatures_students_are_packed_with_their_card(run, tmp_path):
    files = shipped.pack_students(run, tmp_path / "weights")
    assert [f.name for f in files] == ["4step.safetensors", "1step.safetensors"]
    known = checkpoint.load(files[0])
    assert (known.steps, known.dtype) == (4, torch.float16)
    card = (tmp_path / "weights" / "README.md").read_text()
    assert "| `4step.safetensors` | 4 | 8 steps | adversarial | 6 |" in card
    assert shipped.pack_students(run, tmp_path / "weights", [1]) == files[1:]
    with pytest.raises(ValueError, match="holds no student for 2, 8 steps"):
        shipped.pack_students(run, tmp_path / "nowhere", [1, 2, 8])
    assert not (tmp_path / "nowhere").exists()


def test_a_folder_without_students_is_named(tmp_path, capsys):
    assert main(["export", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "holds no finished student" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
