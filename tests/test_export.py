"""`export`: a run's students in both released layouts, recognised by what reads such files."""

import shutil

import pytest
import torch
from animatediff_lightning.distill.cli.program import main
from animatediff_lightning.distill.miniature.names import motion_module_path
from animatediff_lightning.distill.miniature.pack import pack_build, pack_students
from animatediff_lightning.distill.train.run_folder import RunFolder
from animatediff_lightning.motion_module import checkpoint

TOLD = {
    "family": "AnimateDiff-Lightning (adversarial)",
    "cfg": 1,
    "loss": "adversarial",
    "bases": "plain, toon",
    "schedule": "linear betas 0.00085 to 0.012, trailing",
    "frames": 16,
    "iterations": 6,
    "global_batch": 8,
    "seed": 0,
    "training": "0123456789ab",
}


@pytest.fixture
def run(tmp_path):
    """A run's folder with two students, as `train` leaves them."""
    folder = RunFolder(tmp_path / "run")
    module = checkpoint.load(motion_module_path("miniature")).build(dtype=torch.float32)
    for steps in (1, 4):
        told = TOLD | {"steps": steps, "teacher_steps": 2 * steps}
        folder.save_student(f"{steps}step", module, told)
    return folder.root


@pytest.mark.slow
def test_both_layouts_hold_the_same_and_tell_their_steps(run, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["export", str(run), "--out", str(out), "--name", "toy"]) == 0
    names = [f"toy_{n}step_{layout}" for n in (4, 1) for layout in ("comfyui", "diffusers")]
    assert [line.split("/")[-1] for line in capsys.readouterr().out.splitlines()] == [
        *(f"{name}.safetensors" for name in names),
        "README.md",
    ]
    wanted = checkpoint.load(motion_module_path("miniature")).build(dtype=torch.float16)
    for name in names:
        known = checkpoint.load(out / f"{name}.safetensors")
        assert known.layout == name.split("_")[-1]
        assert known.steps == int(name.split("_")[1][0])
        assert known.metadata["training"] == TOLD["training"]
        found = known.build(dtype=torch.float16).state_dict()
        assert all(torch.equal(found[k], t) for k, t in wanted.state_dict().items())
    card = (out / "README.md").read_text()
    assert "| toy_4step | 4 | 8 steps | 6 | adversarial | 0123456789ab |" in card
    assert "plain, toon" in card
    assert "progressive adversarial distillation" in card
    assert "Use:** Euler and the file's steps, on linear" in card


@pytest.mark.slow
def test_a_card_tells_each_students_loss_and_config(run, tmp_path):
    module = checkpoint.load(motion_module_path("miniature")).build(dtype=torch.float32)
    for name, loss in (("1step", "mse"), ("consistency", "consistency")):
        told = TOLD | {"steps": 1, "teacher_steps": 2, "loss": loss, "training": f"of {loss}"}
        RunFolder(run).save_student(name, module, told)
    (run / "students" / "4step.safetensors").unlink()
    assert main(["export", str(run), "--out", str(tmp_path / "out"), "--name", "toy"]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| toy_1step | 1 | 2 steps | 6 | mse | of mse |" in card
    assert "| toy_consistency | 1 | 2 steps | 6 | consistency | of consistency |" in card
    assert "adversarial" not in card
    assert "by MSE, without a discriminator; consistency distillation" in card
    assert "Use:** Euler and the file's steps, on linear" in card
    assert "Use of the consistency module:** the sampler `lcm` and 1 to 8 steps, on linear" in card
    (run / "students" / "1step.safetensors").unlink()
    assert main(["export", str(run), "--out", str(tmp_path / "alone")]) == 0
    card = (tmp_path / "alone" / "README.md").read_text()
    assert "sampler `lcm`" in card
    assert "Euler" not in card


def test_a_module_that_train_did_not_write_stops_before_anything_is_written(run, tmp_path, capsys):
    shutil.copy(motion_module_path("miniature"), run / "students" / "other.safetensors")
    assert main(["export", str(run), "--out", str(tmp_path / "out")]) == 2
    assert "other.safetensors does not say how it was distilled" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="does not say how it was distilled"):
        pack_students(run, tmp_path / "weights")
    assert not (tmp_path / "weights").exists()


@pytest.mark.slow
def test_nothing_is_overwritten_unasked(run, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["export", str(run), "--out", str(out)]
    assert main(command) == 0
    assert main(command) == 2
    assert "pass --force to overwrite it" in capsys.readouterr().err
    assert main([*command, "--force", "--dtype", "float32"]) == 0
    known = checkpoint.load(out / "animatediff_lightning_4step_comfyui.safetensors")
    assert known.dtype == torch.float32


@pytest.mark.slow
def test_the_miniatures_students_are_packed_with_their_card(run, tmp_path):
    files = pack_students(run, tmp_path / "weights")
    assert [f.name for f in files] == ["4step.safetensors", "1step.safetensors"]
    known = checkpoint.load(files[0])
    assert (known.steps, known.dtype) == (4, torch.float16)
    card = (tmp_path / "weights" / "README.md").read_text()
    assert "| `4step.safetensors` | 4 | 8 steps | adversarial | 6 |" in card
    assert pack_students(run, tmp_path / "weights", [1]) == files[1:]
    with pytest.raises(ValueError, match="holds no student for 2, 8 steps"):
        pack_students(run, tmp_path / "nowhere", [1, 2, 8])
    assert not (tmp_path / "nowhere").exists()


def test_metadata_named_as_words_of_the_card_does_not_matter(run, tmp_path):
    module = checkpoint.load(motion_module_path("miniature")).build(dtype=torch.float32)
    strange = {"name": "x", "rows": "x", "use": "x", "methods": "x", "scope": "x", "self": "{0}"}
    told = TOLD | {"steps": 4, "teacher_steps": 8} | strange
    RunFolder(run).save_student("4step", module, told)
    assert main(["export", str(run), "--out", str(tmp_path / "out"), "--name", "toy"]) == 0
    assert "| toy_4step | 4 | 8 steps |" in (tmp_path / "out" / "README.md").read_text()
    pack_students(run, tmp_path / "weights")


def test_a_folder_without_students_is_named(tmp_path, capsys):
    assert main(["export", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "holds no finished student" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_student_of_an_unknown_loss_is_refused(run, tmp_path, capsys):
    module = checkpoint.load(motion_module_path("miniature")).build(dtype=torch.float32)
    told = TOLD | {"steps": 2, "teacher_steps": 4, "loss": "lucky"}
    RunFolder(run).save_student("2step", module, told)
    assert main(["export", str(run), "--out", str(tmp_path / "out")]) == 2
    assert "2step.safetensors does not say how it was distilled" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_strange_student_among_the_shipped_stops_before_anything_is_written(run, tmp_path):
    target = tmp_path / "weights"
    target.mkdir()
    shutil.copy(motion_module_path("miniature"), target / "8step.safetensors")
    with pytest.raises(ValueError, match=r"8step.safetensors does not say how it was distilled"):
        pack_students(run, target)
    with pytest.raises(ValueError, match=r"8step.safetensors does not say how it was distilled"):
        pack_build(run, target)
    assert [f.name for f in target.iterdir()] == ["8step.safetensors"]


@pytest.mark.slow
def test_a_consistency_student_is_not_packed_as_one_of_a_single_step(run, tmp_path):
    module = checkpoint.load(motion_module_path("miniature")).build(dtype=torch.float32)
    told = TOLD | {"steps": 1, "teacher_steps": 50, "loss": "consistency"}
    RunFolder(run).save_student("consistency", module, told)
    files = pack_students(run, tmp_path / "weights")
    assert checkpoint.load(files[-1]).metadata["loss"] == "adversarial"
    for steps in (1, 4):
        (run / "students" / f"{steps}step.safetensors").unlink()
    with pytest.raises(ValueError, match="holds no student for 8, 4, 2, 1 steps"):
        pack_students(run, tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
