"""Configs of a distillation: bundled ones, and every mistake named before anything is trained."""

import copy
import sys

import pytest
import torch
from animatediff_lightning.distill.cli import program
from animatediff_lightning.distill.miniature import shipped
from animatediff_lightning.distill.models import devices
from animatediff_lightning.distill.train import batches, checks
from animatediff_lightning.distill.train import config as train_config
from animatediff_lightning.distill.train.config import ConfigError, TrainConfig
from animatediff_lightning.motion_module import checkpoint
from safetensors.torch import save_file

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TABLE = tomllib.loads(train_config.find_config("miniature").read_text())


def changed(*path_and_value, table=TABLE):
    """Return the miniature's table with a value put somewhere in it."""
    *path, key, value = path_and_value
    new = copy.deepcopy(table)
    place = new
    for part in path:
        place = place[part]
    place[key] = value
    return new


def schedule_problems(table):
    with pytest.raises(ConfigError) as caught:
        train_config.validate_table(table)
    return caught.value.problems


@pytest.mark.parametrize(("name", "last"), [("paper", "adversarial"), ("miniature", "mse")])
def test_bundled_configs_have_the_papers_eight_slots_and_five_stages(name, last):
    config = train_config.read_config(train_config.find_config(name))
    assert len(config.slots) == 8
    assert len(config.bases) == 6
    assert [config.base_index(i) for i in range(8)] == [0, 0, 1, 2, 3, 3, 4, 5]
    assert [(s.teacher_steps, s.student_steps, s.loss) for s in config.stages] == [
        (128, 32, "mse"),
        (32, 8, "adversarial"),
        (8, 4, "adversarial"),
        (4, 2, "adversarial"),
        (2, 1, last),
    ]
    assert checks.problems_of_layout(config, 8) == []


def test_the_papers_numbers():
    config = train_config.read_config(train_config.find_config("paper"))
    mse, first, *_ = config.stages
    assert (mse.cfg, mse.phases[0].learning_rate) == (7.5, 1e-5)
    assert mse.adam_betas(mse.phases[0]) == (0.9, 0.999)
    assert first.adam_betas(first.phases[0]) == (0.0, 0.99)
    assert (first.cfg, first.weight_decay) == (1.0, 0.0)
    assert {p.learning_rate for s in config.stages[1:] for p in s.phases} == {5e-7}
    assert [[p.conditional for p in s.phases] for s in config.stages[1:]] == [[True, False]] * 4
    assert (config.global_batch, config.clips_per_rank, config.dtype) == (256, 1, "bfloat16")
    assert config.stages[3].timesteps == (250, 500, 750, 1000)
    assert config.stages[3].renoise == (10, 250, 500, 750)
    assert config.stages[3].phases[1].renoise_weights == (5, 1, 1, 1)


def test_every_mistake_is_told_at_once_with_the_nearest_known_key(tmp_path):
    text = train_config.find_config("miniature").read_text()
    for old, new in (
        ("iterations = 300", "itterations = 300"),
        ("cfg = 2.0", "cfg = 77"),
        ("save_every", "save_evry"),
        ('pool = "realistic"', 'pol = "realistic"'),
    ):
        assert old in text
        text = text.replace(old, new)
    file = tmp_path / "bad.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        train_config.read_config(file)
    told = "\n".join(caught.value.problems)
    for sentence in (
        "stages.0.phases.0.itterations is not a known key; did you mean 'iterations'?",
        "stages.0.phases.0.iterations is missing",
        "stages.0.cfg is 77",
        "save_evry is not a known key; did you mean 'save_every'?",
        "slots.2.pol is not a known key; did you mean 'pool'?",
    ):
        assert sentence in told


def test_a_file_that_is_no_toml_and_one_that_is_missing(tmp_path):
    file = tmp_path / "x.toml"
    file.write_text("out = [")
    with pytest.raises(ConfigError, match=r"x\.toml is not valid TOML"):
        train_config.read_config(file)
    with pytest.raises(ValueError, match="one of: distribution, miniature, miniature_combined,"):
        train_config.find_config("nothing")


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        (changed("stages", 1, "teacher_steps", 30), "stages.1 goes from 30 to 8 steps"),
        (changed("stages", 1, "teacher_steps", 8), "stages.1 goes from 8 to 8 steps"),
        (changed("stages", 2, "teacher_steps", 16), "but no earlier stage makes one"),
        (changed("slots", 0, "pool", "webvid"), "the pool 'webvid', which is not in pools"),
        (changed("stages", 1, "student_steps", 4), "two stages make a student named '4step'"),
        (changed("stages", 3, "phases", 1, "teacher_steps", 16), "but no earlier stage makes one"),
        (changed("stages", 3, "phases", 1, "renoise_weights", [1, 2]), "has 2 renoise_weights"),
        (changed("stages", 0, "renoise", [10]), "sets renoise, which needs a discriminator"),
        (
            changed("stages", 0, "phases", [{"iterations": 1}] * 2),
            "only adversarial and distribution stages may have several",
        ),
        (
            changed("stages", 1, "phases", 0, "discriminator_head_start", 1000),
            "would learn nothing",
        ),
        (
            changed("stages", 0, "phases", 0, "discriminator_head_start", 1),
            "has no discriminator; remove",
        ),
        (
            changed(
                "stages",
                1,
                "phases",
                [
                    {"iterations": 1, "loss": "mse", "discriminator_steps": 2},
                    {"iterations": 1},
                ],
            ),
            "stages.1.phases.0 has no discriminator; remove discriminator_steps.",
        ),
        (
            changed("stages", 1, "phases", [{"iterations": 1}, {"iterations": 1, "loss": "mse"}]),
            "losses adversarial, mse; put the phases with mse before those with the stage's ad",
        ),
        (
            changed("stages", 1, "phases", [{"iterations": 1, "loss": "mse"}]),
            "losses mse; put the phases with mse before",
        ),
    ],
)
def test_impossible_schedules(table, sentence):
    assert any(sentence in problem for problem in schedule_problems(table))


@pytest.mark.parametrize(
    ("table", "world_size", "sentence"),
    [
        (changed("global_batch", 12), 1, "global_batch 12 cannot be shared evenly by 8 slots"),
        (TABLE, 3, "8 slots cannot be shared evenly by 3 processes"),
        (TABLE, 16, "make it a multiple of 16"),
        (changed("clips_per_rank", 2), 1, "make it a multiple of 16"),
    ],
)
def test_layouts_that_do_not_divide(table, world_size, sentence):
    problems = checks.problems_of_layout(TrainConfig.model_validate(table), world_size)
    assert any(sentence in problem for problem in problems)


def test_missing_files_are_all_named_and_nothing_is_started(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where no clips are
    text = train_config.find_config("miniature").read_text()
    text = text.replace('teacher = "miniature"', 'teacher = "nowhere.safetensors"')
    text = text.replace("miniature:ink", "missing_base").replace("miniature:photo", "miniature:fog")
    file = tmp_path / "run.toml"
    file.write_text(text)
    code = program.main(["train", str(file), "--out", str(tmp_path / "out"), "--device", "cpu"])
    told = capsys.readouterr().err
    assert code == 2
    for sentence in (
        "nowhere.safetensors",
        "missing_base was not found",
        "no style 'fog'",
        "runs/clips/plain",
        "runs/clips/realistic",
        "nothing was started",
    ):
        assert sentence in told
    assert not (tmp_path / "out").exists()


def test_weights_of_timesteps_are_one_for_each():
    assert any(
        "2 timestep_weights for 8 timesteps" in problem
        for problem in schedule_problems(changed("stages", 1, "timestep_weights", [1, 2]))
    )
    config = TrainConfig.model_validate(changed("stages", 2, "timestep_weights", [1, 1, 1, 9]))
    stage = config.stages[2]
    drawn = [
        batches.draw_sample(
            stage, stage.phases[0], False, torch.Generator().manual_seed(i)
        ).position
        for i in range(400)
    ]
    assert set(drawn) == {1000, 750, 500, 250}
    assert drawn.count(250) / 400 == pytest.approx(9 / 12, abs=0.08)


def test_a_stage_may_compute_in_another_dtype_and_what_is_frozen_has_the_widest():
    plain = TrainConfig.model_validate(changed("dtype", "bfloat16"))
    assert plain.frozen_dtype == "bfloat16"
    table = changed("dtype", "bfloat16")
    mixed = TrainConfig.model_validate(changed("stages", 1, "dtype", "tf32", table=table))
    assert mixed.frozen_dtype == "float32"
    assert [mixed.dtype_of(stage) for stage in mixed.stages[:2]] == ["bfloat16", "tf32"]


@pytest.mark.parametrize(
    ("dtype", "precision"), [("bfloat16", "highest"), ("float32", "highest"), ("tf32", "high")]
)
def test_what_a_stage_computes_in_holds_for_the_stage_alone(dtype, precision):
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    with devices.computing_in(dtype):
        assert torch.get_float32_matmul_precision() == precision
        assert torch.backends.cudnn.allow_tf32 == (dtype == "tf32")
    assert before == (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32)


def test_the_fingerprint_does_not_know_where_a_run_lies():
    config = TrainConfig.model_validate(TABLE)
    moved = config.model_copy(update={"out": config.out / "x", "keep": 9})
    other = TrainConfig.model_validate(changed("seed", 5))
    assert moved.digest() == config.digest() != other.digest()
    started = changed("stages", 1, "phases", 0, "discriminator_head_start", 5)
    assert TrainConfig.model_validate(started).digest() != config.digest()
    first, second = {"iterations": 1}, {"iterations": 2}
    plain = changed("stages", 1, "phases", [first, second])
    warmed = changed("stages", 1, "phases", [first | {"loss": "mse"}, second])
    digests = {TrainConfig.model_validate(table).digest() for table in (plain, warmed)}
    assert len(digests) == 2


def test_a_run_from_before_there_was_a_head_start_is_known_again():
    known = "833a00159df2"  # what students of then tell of their training
    table = tomllib.loads(train_config.find_config("miniature_mse").read_text())
    del table["validation"]
    table["stages"] = [
        {
            "teacher_steps": teacher,
            "student_steps": student,
            "loss": "mse",
            "phases": [{"iterations": iterations, "learning_rate": 2e-4}],
        }
        | more
        for teacher, student, iterations, more in (
            (128, 32, 300, {"cfg": 2.5}),
            (32, 8, 150, {"ema": 0.95}),
            (8, 4, 200, {"ema": 0.95}),
            (4, 2, 300, {"ema": 0.95}),
            (2, 1, 400, {"ema": 0.95}),
        )
    ]
    assert TrainConfig.model_validate(table).digest() == known


@pytest.mark.slow
def test_the_bundled_students_are_of_the_bundled_config():
    config = train_config.read_config(train_config.find_config("miniature_combined"))
    known = checkpoint.load(shipped.student(1)).metadata  # of the last stage
    assert known["training"] == config.digest()
    for stage in config.stages:
        known = checkpoint.load(shipped.student(stage.student_steps)).metadata
        assert (known["loss"], int(known["teacher_steps"])) == (stage.loss, stage.teacher_steps)
        assert int(known["iterations"]) == sum(p.iterations for p in stage.phases)


@pytest.mark.parametrize("weight", [0, 1001, float("inf"), float("nan")])
def test_a_weight_is_above_nothing_and_at_most_a_thousand(weight):
    pool = next(iter(TABLE["pools"]))
    for path in (
        ("pools", pool, "shape_weights", {"16x12x8x8": weight}),
        ("stages", 0, "timestep_weights", [weight] * 32),
    ):
        assert any("_weights." in problem for problem in schedule_problems(changed(*path)))


def test_no_timesteps_at_all_are_refused():
    with pytest.raises(ValueError, match="at least 1 item"):
        TrainConfig.model_validate(changed("stages", 0, "timesteps", []))


def test_files_that_are_no_base_model_are_told_before_any_is_loaded(tmp_path):
    parts = ("cond_stage_model.x", "first_stage_model.x")
    conv_in = "model.diffusion_model.input_blocks.0.0.weight"
    for name, tensors in {
        "sdxl": {"conditioner.embedders.0.x": torch.zeros(1)},
        "inpainting": dict.fromkeys(parts, torch.zeros(1)) | {conv_in: torch.zeros(8, 9, 3, 3)},
    }.items():
        save_file({k: t.clone() for k, t in tensors.items()}, tmp_path / f"{name}.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(bytes(20))
    table = copy.deepcopy(TABLE)
    for slot, name in zip(table["slots"], ("sdxl", "inpainting", "cut"), strict=False):
        slot |= {"base": f"{tmp_path / name}.safetensors", "tokenizer": "no/folder"}
    table["slots"][1]["config"] = "no/config"
    told = "\n".join(checks.problems_of_files(TrainConfig.model_validate(table), {}))
    for sentence in (
        "sdxl.safetensors is an SDXL checkpoint",
        "inpainting.safetensors is an inpainting checkpoint",
        "cut.safetensors is truncated",
        "no/folder holds no tokenizer",
        "no/config has no model_index.json",
    ):
        assert sentence in told


def test_how_long_a_collapse_may_last_does_not_change_what_is_trained():
    known = TrainConfig.model_validate(TABLE)
    assert TrainConfig.model_validate(changed("collapse_after", 7)).digest() == known.digest()
