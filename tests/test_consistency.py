"""The consistency loss: a student that is drawn to its own x0, or to that of its average."""

import csv

import pytest
from animatediff_lightning.distill.cli.program import main
from animatediff_lightning.distill.train import config as train_config
from animatediff_lightning.distill.train.config import ConfigError
from animatediff_lightning.distill.train.run_folder import Place, RunFolder
from safetensors.torch import load_file

from . import distil_files
from .distil_files import same

STAGE = """
[[stages]]
teacher_steps = 8
student_steps = 1
loss = "consistency"
cfg = 1.5
ema = 0.9
target = "{target}"
phases = [{{ iterations = 4, learning_rate = 1e-3 }}]
"""


def write_config(file, out, clips, target="average"):
    text = distil_files.write_config(file, out, clips).read_text().replace("keep = 2", "keep = 9")
    file.write_text(text[: text.index("[[stages]]")] + STAGE.format(target=target))
    return file


def losses_of(folder):
    with (folder / "curves.csv").open() as source:
        return [row["loss_g"] for row in csv.DictReader(source)]


@pytest.fixture(scope="module")
def averaged(clips, tmp_path_factory):
    """The folder of a run whose target is the average, and its config."""
    return distil_files.train(write_config, tmp_path_factory.mktemp("run"), clips)


@pytest.mark.slow
def test_the_average_is_another_target_as_soon_as_it_lags(averaged, clips, tmp_path):
    file = write_config(tmp_path / "run.toml", tmp_path / "out", clips, target="student")
    assert main(["train", str(file), "--device", "cpu"]) == 0
    own, average = losses_of(tmp_path / "out"), losses_of(averaged[0])
    assert own[0] == average[0]  # nothing has been learned yet
    assert own[1:] != average[1:]


@pytest.mark.slow
@pytest.mark.parametrize("left", [1, 2, 3])
def test_it_goes_on_anywhere_to_the_same_bits(averaged, tmp_path, left):
    folder, _ = averaged
    again = distil_files.cut_and_go_on(averaged, tmp_path, Place(0, 0, left), "consistency")
    assert losses_of(again) == losses_of(folder)
    students = [load_file(RunFolder(f).student("consistency")) for f in (folder, again)]
    assert same(*students)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("ema = 0.9\n", "", "has the average as its target, but no ema"),
        ('"consistency"', '"mse"', "sets target, which needs the loss consistency"),
    ],
)
def test_what_cannot_work_is_told(clips, tmp_path, old, new, problem):
    file = write_config(tmp_path / "run.toml", tmp_path / "out", clips)
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(ConfigError, match=problem):
        train_config.read_config(file)
