"""What a distillation measures on base models that it does not train with, and what it keeps."""

import math

import pytest
import torch
from animatediff_lightning.distill.cli.program import main
from animatediff_lightning.distill.engine import distributed
from animatediff_lightning.distill.miniature import shipped, split
from animatediff_lightning.distill.miniature.names import base_path
from animatediff_lightning.distill.models.base_model import load_base
from animatediff_lightning.distill.train import checks, plan, setup, stages, validation
from animatediff_lightning.distill.train import config as train_config
from animatediff_lightning.distill.train.config import ConfigError, ValidationTable
from animatediff_lightning.distill.train.run_folder import Place
from animatediff_lightning.motion_module import checkpoint
from safetensors.torch import load_file

from . import distil_files
from .distil_files import same
from .processes import together

CPU = torch.device("cpu")
TABLE = """
[validation]
bases = ["miniature:moss"]
every = 2
clips = 4
"""
ITERATIONS = 5


def write_config(file, out, clips, table=TABLE, iterations=ITERATIONS):
    """Write a config of one stage of MSE, 4 -> 2 steps, that is measured on moss."""
    text = distil_files.write_config(file, out, clips, iterations=iterations).read_text()
    first = text[: text.rindex("[[stages]]")].replace("keep = 2", "keep = 99")
    start = first.index("[[stages]]")
    file.write_text(first[:start] + table + first[start:])
    return file


@pytest.fixture(scope="module")
def undisturbed(clips, tmp_path_factory):
    """The folder of a whole run, and its config."""
    return distil_files.train(write_config, tmp_path_factory.mktemp("run"), clips)


@pytest.fixture
def training(undisturbed):
    config = train_config.read_config(undisturbed[1])
    with stages.start_stage(setup.load_setup(config, CPU, resume=True), 0) as training:
        yield training


def make_validator(config):
    return validation.Validator(config, CPU, lambda name: load_base(base_path(name)))


def lines(folder):
    """Return the measurements, without the lines that tell who made them."""
    return [line for line in validation.read_lines(folder) if "stage" in line]


def student(folder):
    return load_file(folder / "students" / "2step.safetensors")


@pytest.mark.slow
def test_it_is_measured_at_the_start_when_due_and_at_the_end(undisturbed):
    folder = undisturbed[0]
    told = lines(folder)
    assert [line["iteration"] for line in told] == [0, 2, 4, 5]
    header = validation.read_lines(folder)[0]
    assert header["versions"]["torch"] == torch.__version__
    assert header["config"] == train_config.read_config(undisturbed[1]).digest()
    assert told[0]["moved"] == 0 < told[1]["moved"]
    for line in told:
        assert line["base"] == "miniature:moss"
        assert len(line["guidance"]) == len(line["landing"]) == 2  # of each step
        assert all(map(math.isfinite, (line["frechet"], *line["guidance"], *line["landing"])))


@pytest.mark.slow
def test_the_undistilled_module_has_learned_no_guidance_and_its_teacher_has_all(training):
    networks = training.networks(Place(0, 0, 0))
    validator = make_validator(training.setup.config)
    module = checkpoint.load(shipped.motion_module()).build(dtype=torch.float32)
    validator.begin(module)
    plain = validator.measure(networks, module)["miniature:moss"]
    assert plain.guidance == pytest.approx([1.0, 1.0])
    assert all(apart > 0.01 for apart in plain.landing)
    again = validator.measure(networks, module)["miniature:moss"]
    assert plain == again  # the same clips and noise each time


@pytest.mark.slow
def test_a_step_that_lands_where_its_teacher_does_has_no_distance(training):
    """The undistilled module against itself: no guidance, and as many steps."""
    networks = training.networks(Place(0, 0, 0))
    networks.stage = networks.stage.model_copy(update={"cfg": 1.0, "student_steps": 4})
    validator = make_validator(training.setup.config)
    module = checkpoint.load(shipped.motion_module()).build(dtype=torch.float32)
    validator.begin(module)
    found = validator.measure(networks, module)["miniature:moss"]
    assert len(found.landing) == 4
    assert found.landing == pytest.approx([0.0] * 4, abs=1e-5)


@pytest.mark.slow
def test_it_measures_the_average_with_checkpointed_activations_too(undisturbed, clips, tmp_path):
    """What computes activations anew must not lead a copy back to the student that is trained."""
    file = write_config(tmp_path / "run.toml", tmp_path / "out", clips)
    text = file.read_text().replace("checkpointing = false", "checkpointing = true")
    file.write_text(text)
    assert main(["train", str(file), "--device", "cpu"]) == 0
    for plain, found in zip(lines(undisturbed[0]), lines(tmp_path / "out"), strict=True):
        assert found["frechet"] == pytest.approx(plain["frechet"], rel=1e-2)
        assert found["landing"] == pytest.approx(plain["landing"], rel=1e-2)


@pytest.mark.slow
def test_the_student_is_the_one_that_measured_best(undisturbed, clips, tmp_path):
    folder, _ = undisturbed
    later = [line for line in lines(folder) if line["iteration"]]
    best = min(later, key=lambda line: line["frechet"])["iteration"]
    table = TABLE + "keep_best = false\n"
    file = write_config(tmp_path / "run.toml", tmp_path / "out", clips, table, iterations=best)
    assert main(["train", str(file), "--device", "cpu"]) == 0
    assert same(student(folder), student(tmp_path / "out"))


@pytest.mark.slow
def test_a_trainer_keeps_the_best_and_a_checkpoint_brings_it_back(training):
    trainer = training.start_phase(Place(0, 0, 0))
    module = trainer.networks.plain_student.motion_module
    weights = {}
    for iteration, distance in enumerate((30.0, 10.0, 20.0), 1):
        with torch.no_grad():
            for weight in module.parameters():
                weight.add_(1.0)
        weights[iteration] = distil_files.copied(module)
        trainer.remember(distance, iteration, module)
    again = training.start_phase(Place(0, 0, 0))
    again.load_state_dict(trainer.state_dict())
    assert again.best.iteration == 2
    again.use_result()
    assert same(distil_files.copied(module), weights[2])


@pytest.mark.slow
@pytest.mark.parametrize("left", [1, 2, 4])
def test_it_goes_on_anywhere_to_the_same_student_and_lines(undisturbed, tmp_path, left):
    folder, _ = undisturbed
    again = distil_files.cut_and_go_on(undisturbed, tmp_path, Place(0, 0, left), "2step")
    assert lines(again) == lines(folder)
    assert same(student(folder), student(again))


@pytest.mark.slow
@pytest.mark.multiprocess
def test_two_processes_share_the_clips_and_both_know_the_figures(undisturbed, tmp_path):
    config = train_config.read_config(undisturbed[1])

    def work(rank):
        distributed.start(CPU)
        validator = make_validator(config)
        with stages.start_stage(setup.load_setup(config, CPU, resume=True), 0) as training:
            module = checkpoint.load(shipped.motion_module()).build(dtype=torch.float32)
            networks = training.networks(Place(0, 0, 0))
            validator.begin(module)
            torch.save(dict(validator.measure(networks, module)), tmp_path / f"{rank}.pt")
        distributed.stop()

    for world_size in (1, 2):
        together(world_size, work)
        found = [
            torch.load(tmp_path / f"{rank}.pt", weights_only=False)["miniature:moss"]
            for rank in range(world_size)
        ]
        assert all(figures == found[0] for figures in found)
        if world_size == 1:
            (alone,) = found
    for one, other in zip(alone, found[0], strict=True):
        assert other == pytest.approx(one, rel=1e-3)


def test_the_captions_are_those_that_the_miniature_keeps_for_it():
    table = ValidationTable(bases=("miniature:moss",), every=1, clips=40)
    assert set(validation.captions_of(table)) <= split.captions("validation")


@pytest.mark.parametrize(("distance", "useless"), [(99.0, True), (50.0, False)])
def test_a_stage_tells_what_it_did_and_where_that_is_next_to_nothing(
    clips, tmp_path, distance, useless
):
    record = validation.Record(tmp_path, Place(0, 0, 0))
    for count, frechet in ((0, 100.0), (2, distance), (4, distance + 1)):
        figures = validation.Figures(0.0012 * count, frechet, [1.0, 1.5], [0.5, 0.25])
        record.add(Place(1, 0, count), {"miniature:moss": figures})
    file = write_config(tmp_path / "run.toml", tmp_path / "out", clips)
    config = train_config.read_config(file)
    told = validation.describe(tmp_path, config, 1)
    assert f"moss went from 100 to {distance:.4g}, guidance from 1.25 to 1.25" in told[0]
    assert "moved by 0.24%" in told[0]
    assert (len(told) == 2) == useless
    assert not useless or "no distance fell by 5%" in told[1]
    assert validation.describe(tmp_path, config, 0) == []
    table = config.validation.model_copy(update={"keep_best": False})
    last = validation.describe(tmp_path, config.model_copy(update={"validation": table}), 1)
    assert f"from 100 to {distance + 1:.4g}" in last[0]


def test_half_a_line_of_a_kill_is_dropped(tmp_path):
    figures = validation.Figures(0.1, 1.0, [1.0], [0.5])
    record = validation.Record(tmp_path, Place(0, 0, 0))
    for count in (0, 2, 4):
        record.add(Place(0, 0, count), {"miniature:moss": figures})
    file = tmp_path / validation.FILE
    file.write_text(file.read_text()[:-9])
    validation.Record(tmp_path, Place(0, 0, 4))
    assert [line["iteration"] for line in lines(tmp_path)] == [0, 2]


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ('bases = ["miniature:toon"]\nevery = 2', "which a slot trains with"),
        ('bases = ["other.safetensors"]\nevery = 2', "add prompts and i3d to validation"),
        ('bases = ["miniature:moss"]', "every"),
        ('bases = ["miniature:moss"]\nevery = 0', "greater than or equal to 1"),
    ],
)
def test_what_cannot_work_is_told(clips, tmp_path, table, problem):
    file = write_config(tmp_path / "run.toml", tmp_path / "out", clips, f"[validation]\n{table}\n")
    with pytest.raises(ConfigError, match=problem):
        train_config.read_config(file)


def test_files_that_are_missing_are_told_all_at_once(clips, tmp_path):
    table = (
        '[validation]\nbases = ["other.safetensors"]\nevery = 2\nprompts = "no.txt"\n'
        'i3d = "no.safetensors"\n'
    )
    file = write_config(tmp_path / "run.toml", tmp_path / "out", clips, table)
    with pytest.raises(ConfigError) as caught:
        checks.check(train_config.read_config(file), world_size=1)
    assert len(caught.value.problems) == 3
    for name in ("other.safetensors", "no.txt", "no.safetensors"):
        assert any(name in problem for problem in caught.value.problems)
    missing = plan.list_missing_files(train_config.read_config(file))
    assert {"other.safetensors", "no.txt", "no.safetensors"} <= set(missing)


@pytest.mark.parametrize(
    ("table", "changes", "problem"),
    [
        ('prompts = "strange.txt"', {}, "'a red car', which names no colour, animal and"),
        ("", {"frames = 16": "frames = 8"}, "clips of the miniature, which have 16 frames"),
        (
            'i3d = "weights.safetensors"',
            {"frames = 16": "frames = 8"},
            "needs clips of at least 9 frames, not 8",
        ),
    ],
)
def test_what_cannot_be_measured_is_told_before_it_begins(
    clips, tmp_path, monkeypatch, table, changes, problem
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "strange.txt").write_text("a red fish swimming left\na red car\n")
    (tmp_path / "weights.safetensors").write_bytes(b"")
    file = write_config(tmp_path / "run.toml", tmp_path / "out", clips, f"{TABLE}{table}\n")
    text = file.read_text()
    for old, new in changes.items():
        text = text.replace(old, new)
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        checks.check(train_config.read_config(file), world_size=1)
    assert any(problem in told for told in caught.value.problems)


def test_a_validation_that_keeps_nothing_is_no_other_training(clips, tmp_path):
    digests = [
        train_config.read_config(
            write_config(tmp_path / "run.toml", tmp_path / "out", clips, table)
        ).digest()
        for table in ("", TABLE + "keep_best = false\n", TABLE)
    ]
    assert digests[0] == digests[1] != digests[2]
