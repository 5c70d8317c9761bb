"""The miniature that ships: it draws what it is told, moving; and the report that measures it."""

import csv
import shutil
from dataclasses import replace

import av
import numpy as np
import pytest
import torch
from animatediff_lightning.distill.cli.program import main
from animatediff_lightning.distill.evaluate import frechet, miniature
from animatediff_lightning.distill.evaluate.miniature_request import MiniatureRequest
from animatediff_lightning.distill.generate import with_miniature
from animatediff_lightning.distill.miniature import (
    measure,
    metrics,
    models,
    probe,
    sample,
    shipped,
    styles,
    world,
)
from animatediff_lightning.distill.models.base_model import load_base
from animatediff_lightning.distill.models.latents import encode_images
from animatediff_lightning.distill.sampling.model_choice import ModelChoice
from animatediff_lightning.distill.sampling.request import ClipRequest
from animatediff_lightning.motion_module import checkpoint
from PIL import Image

CLIPS = 8
STEPS = 16


pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("miniature_cache")]


@pytest.fixture(scope="module")
def module():
    return checkpoint.load(shipped.motion_module()).build(dtype=torch.float32)


def drawn(style, module, steps=STEPS, cfg=None, count=CLIPS):
    scenes = metrics.held_out_scenes(count)
    setting = sample.Setting(style, "", "euler", steps, cfg or shipped.cfg(), count)
    return sample.sample_clips(load_base(shipped.base(style)), module, scenes.captions(), setting)


def scored(style, *args, count=CLIPS, **options):
    clips = drawn(style, *args, count=count, **options)
    return metrics.summary(metrics.score(clips, metrics.held_out_scenes(count), style))


@pytest.mark.parametrize("style", ["plain", "wood"])
def test_clips_of_unheard_captions_move_as_told_in_the_right_look(module, style):
    found = scored(style, module)
    assert found["motion"] >= 0.7
    assert found["colour"] >= 0.8
    assert found["style"] >= 0.8


def test_without_the_motion_module_nothing_moves_as_told():
    assert scored("plain", None, steps=8)["motion"] <= 0.5


@pytest.mark.parametrize("style", ["plain", "neon", "wood"])
def test_students_need_fewer_steps_on_bases_that_they_have_seen_and_not(module, style):
    """All are nearer to true clips than the undistilled motion module in as many steps."""
    scenes = metrics.held_out_scenes(40)
    true = probe.features(metrics.true_clips(scenes, style))
    for steps in (4, 2, 1):
        known = checkpoint.load(shipped.student(steps))
        assert known.steps == steps
        modules = module, known.build(dtype=torch.float32)
        clips = [drawn(style, m, steps, cfg=1, count=40) for m in modules]
        undistilled, student = (metrics.summary(metrics.score(c, scenes, style)) for c in clips)
        assert undistilled["chroma"] < student["chroma"] < 1.1
        if style == "plain":
            assert student["heading"] >= undistilled["heading"]
        far, near = (frechet.between(probe.features(c), true) for c in clips)
        assert near < 0.95 * far


def test_the_four_step_student_moves_and_paints_as_told_on_f_0(module):
    student = checkpoint.load(shipped.student(4)).build(dtype=torch.float32)
    found = scored("plain", student, 4, cfg=1, count=40)
    assert found["motion"] >= 0.90
    assert found["colour"] >= 0.95
    assert found["grain"] <= 2
    undistilled = scored("plain", module, 4, cfg=1, count=40)
    assert found["strict"] > undistilled["strict"]
    assert found["jerk"] < undistilled["jerk"]
    assert abs(found["chroma"] - 1) < abs(undistilled["chroma"] - 1)


def test_the_motion_module_that_fits_the_steps_is_drawn_with():
    assert shipped.motion_module_for(None) == shipped.student(4)
    assert shipped.motion_module_for(1) == shipped.student(1)
    assert shipped.motion_module_for(32) == shipped.motion_module()
    assert shipped.motion_module_for(4, "dpmpp") == shipped.motion_module()
    guided = with_miniature(ModelChoice(), ClipRequest(("a",), steps=4, cfg=2.0))
    assert guided.motion_module == shipped.motion_module()
    plain = with_miniature(ModelChoice(), ClipRequest(("a",), steps=None, cfg=None))
    assert plain.motion_module == shipped.student(4)


def test_shared_weights_are_small_and_complete():
    files = list(shipped.WEIGHTS.rglob("*.*"))
    assert sum(f.stat().st_size for f in files) <= 30e6
    assert {f.stem for f in files} >= set(styles.STYLES)
    assert (shipped.WEIGHTS / "README.md").is_file()


def test_a_base_is_an_ordinary_diffusers_folder_and_made_once():
    folder = shipped.base("photo")
    before = (folder / "unet" / "config.json").stat().st_mtime_ns
    assert shipped.base("photo") == folder
    assert (folder / "unet" / "config.json").stat().st_mtime_ns == before
    base = load_base(folder)
    assert base.prediction_type == "v_prediction"
    assert (base.latent_factor, base.default_size) == (2, 16)


def test_the_vae_loses_nothing():
    base = load_base(shipped.base())
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    latents = base.vae.encode(images).latent_dist.sample()
    assert latents.shape == (2, 12, 8, 8)
    torch.testing.assert_close(base.vae.decode(latents).sample, images)


def test_the_latents_of_a_new_build_are_white():
    scenes = metrics.held_out_scenes(64)
    base = replace(load_base(shipped.base()), vae=models.build_vae())
    z = [encode_images(base, metrics.true_clips(scenes, style)[:, 0]) for style in styles.STYLES]
    within = torch.stack([x.var((0, 2, 3)) for x in z]).mean(0)
    torch.testing.assert_close(within, torch.ones(12), rtol=0.25, atol=0)
    assert torch.cat(z).mean((0, 2, 3)).abs().max() < 0.25


def test_generate_without_models_draws_a_moving_clip_and_a_sheet(tmp_path, capsys):
    out = tmp_path / "clip.mp4"
    code = main(["generate", "--prompt", "a red fish swimming left", "--out", str(out)])
    said, warned = capsys.readouterr()
    assert code == 0
    assert warned.startswith("note: this is the miniature")
    assert "--base" in warned
    assert said.startswith(f"wrote {out} and clip.png: 16 frames of 256x256")
    assert out.with_suffix(".png").is_file()
    with av.open(out) as container:
        pictures = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    clips = torch.from_numpy(np.stack(pictures))[None].permute(0, 1, 4, 2, 3)
    small = clips[..., 8::16, 8::16].float() / 127.5 - 1
    found = measure.measure(small)
    assert found.motion.item() == list(world.DIRECTIONS).index("left")
    assert found.colour.item() == list(world.COLOURS).index("red")


def test_a_style_may_be_asked_for(tmp_path, capsys):
    arguments = ["generate", "--prompt", "a teal mouse running up", "--steps", "2", "--frames", "4"]
    code = main([*arguments, "--base", "miniature:ink", "--out", str(tmp_path / "a.png")])
    assert code == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--prompt", "a red dgo"], "does not know the word 'dgo'"),
        (["--prompt", "a red fish swiming left"], "did you mean 'swimming'?"),
        (
            ["--prompt", "a red fish", "--base", "miniature:oil"],
            "no style 'oil'; its styles are plain",
        ),
    ],
)
def test_what_the_miniature_does_not_know_is_named(tmp_path, capsys, arguments, sentence):
    code = main(["generate", *arguments, "--out", str(tmp_path / "a.mp4")])
    _, warned = capsys.readouterr()
    assert code == 2
    assert sentence in warned
    assert list(tmp_path.iterdir()) == []


def test_the_report_measures_keeps_and_draws(tmp_path, capsys):
    out = tmp_path / "m.csv"
    arguments = ["evaluate", "miniature", "--base", "plain", "--clips", "3", "--out", str(out)]
    assert main([*arguments, "--steps", "2,1", "--cfg", "1"]) == 0
    said, _ = capsys.readouterr()
    rows = list(csv.DictReader(out.open()))
    assert [r["motion_module"] for r in rows] == ["true clips", "chance", *["motion_module"] * 2]
    assert [r["evaluations"] for r in rows] == ["0", "0", "2", "1"]
    assert said.count("\n") == 2 + len(rows)
    assert out.with_suffix(".png").is_file()
    text = out.read_text().replace(rows[2]["jerk"], "7.777")
    out.write_text(text)  # a row that is there is not measured again
    assert main([*arguments, "--steps", "2", "--cfg", "1,2"]) == 0
    assert out.read_text().startswith(text)
    assert list(csv.DictReader(out.open()))[-1]["evaluations"] == "4"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--base", "oil"], "oil is not a style of the miniature"),
        (["--steps", "four"], "not a list of numbers"),
        (["--steps", "0"], "at least 1"),
        (["--sampler", "heun"], "sampler must be one of euler, dpmpp, lcm, not 'heun'"),
        (["--clips", "1"], "--clips must be at least 2"),
        (["--out", "m.txt"], "must end in .csv"),
        (["--cfg", "nan"], "cfg must be between 0 and 100, not nan"),
        (["--cfg", "1,inf"], "cfg must be between 0 and 100, not inf"),
        (["--steps", "4,2000"], "steps must be between 1 and 1000, not 2000"),
    ],
)
def test_impossible_reports_are_refused(tmp_path, monkeypatch, capsys, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", "miniature", *arguments]) == 2
    assert sentence in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_files_of_one_name_have_rows_of_their_own(tmp_path):
    """As the students of two runs, all of which are called 1step."""
    out = tmp_path / "m.csv"
    for steps in (1, 8):
        file = tmp_path / str(steps) / "1step.safetensors"
        file.parent.mkdir()
        shutil.copy(shipped.student(steps), file)
        base = shutil.copytree(shipped.base("plain"), tmp_path / str(steps) / "plain")
        if steps == 8:
            shutil.copytree(shipped.base("neon"), base, dirs_exist_ok=True)
        command = ["evaluate", "miniature", "--base", str(base), "--motion-module", str(file)]
        assert (
            main([*command, "--clips", "2", "--steps", "1", "--cfg", "1", "--out", str(out)]) == 0
        )
    measured = [r for r in csv.DictReader(out.open()) if r["steps"] == "1"]
    assert len({r["motion_module"] for r in measured}) == len({r["base"] for r in measured}) == 2
    assert all(r["motion_module"].startswith("1step-") for r in measured)


def test_another_table_is_not_written_over(tmp_path, capsys):
    out = tmp_path / "m.csv"
    out.write_text("base,n\nplain,3\n")
    command = ["evaluate", "miniature", "--clips", "2", "--steps", "1", "--out", str(out)]
    assert main(command) == 2
    assert "m.csv is another table; choose another --out" in capsys.readouterr().err
    assert out.read_text() == "base,n\nplain,3\n"


def test_guidance_counts_twice():
    assert sample.Setting("plain", "", "euler", 4, 2.5, 1).evaluations == 8
    assert sample.Setting("plain", "", "euler", 4, 1.0, 1).evaluations == 4


def test_a_batch_of_clips_equals_them_one_by_one(module):
    base = load_base(shipped.base())
    captions = metrics.held_out_scenes(3).captions()
    setting = sample.Setting("plain", "", "euler", 2, 2.0, 3)
    together = sample.sample_clips(base, module, captions, setting)
    for i, caption in enumerate(captions):
        alone = sample.sample_clips(base, module, [caption], setting, first_seed=i)
        assert torch.allclose(together[i], alone[0], atol=1e-4)


def test_tables_read_as_markdown():
    lines = miniature.show([{"a": 1, "bc": "x"}, {"a": 22, "bc": ""}]).splitlines()
    assert lines == ["| a  | bc |", "| -- | -- |", "| 1  | x  |", "| 22 |    |"]


def test_a_picture_shows_every_style_in_a_row(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(shipped, "STEPS", 1)
    out = tmp_path / "picture.png"
    assert main(["miniature", "picture", "a red fish swimming left", "--out", str(out)]) == 0
    with Image.open(out) as picture:
        pixels = np.asarray(picture)
    cell = 4 * (world.SIZE + 2)
    assert pixels.shape == (len(styles.STYLES) * cell, world.FRAMES // 2 * cell, 3)
    rows = pixels.reshape(len(styles.STYLES), cell, -1, 3).mean((1, 2))
    assert len(np.unique(rows.round(), axis=0)) == len(styles.STYLES)
    capsys.readouterr()
    assert main(["miniature", "picture", "a red dog", "--out", str(tmp_path / "b.png")]) == 2
    assert "does not know the word 'dog'" in capsys.readouterr().err


def test_a_report_asks_only_for_the_folder_that_it_writes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clip.mp4").mkdir()  # what `generate` would write here
    asked = MiniatureRequest(steps=(1,), cfgs=(1.0,), clips=2, out=tmp_path / "m.csv")
    assert asked.steps == (1,)
    (tmp_path / "m.png").mkdir()
    assert main(["evaluate", "miniature", "--out", "m.csv"]) == 2
    assert "m.png is a folder" in capsys.readouterr().err
    assert not (tmp_path / "m.csv").exists()
