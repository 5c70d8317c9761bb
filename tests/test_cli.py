"""The program as a user runs it: clips, errors in one sentence, Ctrl-C, inspect and convert."""

import json
import os
import signal
import subprocess
import sys
import time
from itertools import combinations, pairwise
from pathlib import Path

import av
import huggingface_hub
import numpy as np
import pytest
import torch
from animatediff_lightning.distill import generate as clips
from animatediff_lightning.distill.cli import options
from animatediff_lightning.distill.cli.program import main
from animatediff_lightning.distill.files.cache import CACHE_VARIABLE
from animatediff_lightning.distill.sampling.settings import SAMPLERS
from animatediff_lightning.motion_module import checkpoint
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from . import headless_ldm, random_models

SMALL = ["--frames", "3", "--steps", "1"]
PROGRAM = [sys.executable, "-m", "animatediff_lightning.distill"]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # thin models: threads of two processes would only spin
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(folder))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        patch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
        random_models.ensure()  # beforehand: writing it draws bars on stderr
        yield folder
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def models(cache):  # noqa: ARG001 - sets the folder that ensure() uses
    return random_models.ensure()


@pytest.fixture
def run(capsys):
    def call(*arguments):
        code = main([str(a) for a in arguments])
        return code, *capsys.readouterr()

    return call


def using(base, motion_module):
    return ["--base", base, "--motion-module", motion_module]


def generate(run, out, *arguments, prompt="a cat"):
    if "--base" not in arguments:
        made = random_models.ensure()
        arguments = (*using(made.base, made.motion_module), *arguments)
    code, said, warned = run("generate", "--prompt", prompt, "--out", out, *SMALL, *arguments)
    assert code == 0, warned
    return said, warned


def sheet(run, out, *arguments, **options):
    """Return a clip's frames, losslessly, as the contact sheet's tiles."""
    generate(run, out, *arguments, **options)
    pixels = np.array(Image.open(out))
    return pixels.reshape(-1, 64, 2, 64, 3).swapaxes(1, 2).reshape(-1, 64, 64, 3)[:3]


# ---- clips


@pytest.mark.multiprocess
@pytest.mark.slow
def test_help_and_version_do_not_import_torch():
    code = (
        "import sys; from animatediff_lightning.distill.cli.program import main; "
        "codes = [main(a) for a in (['--help'], ['generate', '--help'], ['--version'], [])]; "
        "assert codes == [0] * 4, codes; "
        "heavy = {'torch', 'diffusers', 'transformers', 'av'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "generate" in done.stdout
    assert "animatediff-lightning 0." in done.stdout


@pytest.mark.multiprocess
@pytest.mark.slow
def test_both_names_are_one_program(tmp_path):
    script = Path(sys.executable).with_name("animatediff-lightning")
    for program in ([str(script)], PROGRAM):
        done = subprocess.run([*program, "generate"], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 2
        assert done.stderr == ("error: there is no prompt; give --prompt or --prompts FILE.\n")
    for program in ([str(script)], PROGRAM):
        done = subprocess.run([*program, "--version"], capture_output=True, text=True)
        assert done.returncode == 0
        assert done.stdout.startswith("animatediff-lightning ")


@pytest.mark.slow
def test_mp4_as_asked(run, tmp_path):
    out = tmp_path / "new folder" / "clip.mp4"
    said, warned = generate(run, out, "--frames", 5, "--fps", 12, "--width", 72)
    assert said.startswith(f"wrote {out}: 5 frames of 72x64, 12 fps, in ")
    assert warned == ""
    assert not out.with_suffix(".png").exists()
    with av.open(out) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        assert (stream.width, stream.height, stream.average_rate) == (72, 64, 12)
    assert len(frames) == 5
    pictures = [f.to_ndarray(format="rgb24").astype(int) for f in frames]
    assert all(np.abs(a - b).mean() > 5 for a, b in pairwise(pictures))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gif", "webp"])
def test_animated_images(run, tmp_path, kind):
    out = tmp_path / f"clip.{kind}"
    generate(run, out)
    with Image.open(out) as image:
        assert (image.n_frames, image.size) == (3, (64, 64))


@pytest.mark.slow
def test_a_seed_gives_the_same_file_and_another_seed_another(run, tmp_path):
    for kind in ("mp4", "webp"):
        files = [tmp_path / f"{name}.{kind}" for name in "abc"]
        for file, seed in zip(files, (3, 3, 4), strict=True):
            generate(run, file, "--seed", seed)
        assert files[0].read_bytes() == files[1].read_bytes(), kind
        assert files[0].read_bytes() != files[2].read_bytes(), kind


@pytest.mark.slow
def test_frames_prompts_and_motion_scale_differ(run, tmp_path):
    a = sheet(run, tmp_path / "a.png").astype(int)
    assert all(np.abs(a[i] - a[j]).mean() > 5 for i, j in ((0, 1), (1, 2)))
    other = sheet(run, tmp_path / "b.png", prompt="snow over the sea")
    assert np.abs(a - other).mean() > 0.1
    still = sheet(run, tmp_path / "c.png", "--motion-scale", 4)
    assert np.abs(a - still).mean() > 0.1


@pytest.mark.slow
def test_the_motion_module_given_is_the_one_used(run, tmp_path, models):
    other = checkpoint.load(models.motion_module).build()
    for part in other.temporal_transformers().values():
        part.proj_out.weight.zero_()
        part.proj_out.bias.zero_()
    file = checkpoint.save(other, tmp_path / "still.safetensors")
    given = ["--base", models.base, "--motion-module"]
    generate(run, tmp_path / "a.png", *given, models.motion_module)
    generate(run, tmp_path / "b.png", *given, file)
    random, none = (np.array(Image.open(tmp_path / f"{n}.png")) for n in "ab")
    assert random.shape == (128, 128, 3)  # four tiles
    assert np.abs(random.astype(int) - none).mean() > 5


@pytest.mark.slow
def test_several_prompts_give_numbered_clips_of_one_seed(run, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a fish\n\n  a bird \na fish\n")
    code, said, _ = run("generate", "--prompts", prompts, "--out", tmp_path / "c.gif", *SMALL)
    assert code == 0
    assert len(said.splitlines()) == 3
    assert not (tmp_path / "c.gif").exists()
    first, second, third = (tmp_path / f"c-{i}.gif" for i in range(3))
    assert first.read_bytes() == third.read_bytes() != second.read_bytes()


@pytest.mark.slow
def test_cfg_samplers_and_dtype_run(run, tmp_path):
    plain = sheet(run, tmp_path / "a.png", "--steps", 2)
    for i, more in enumerate(
        (
            ["--cfg", "7.5", "--negative-prompt", "blurry"],
            ["--sampler", "dpmpp"],
            ["--sampler", "lcm"],
            ["--dtype", "bfloat16"],
            ["--prediction-type", "v_prediction"],
        )
    ):
        other = sheet(run, tmp_path / f"{i}.png", "--steps", 2, *more)
        assert not np.array_equal(plain, other), more


@pytest.mark.slow
def test_single_file_base(run, tmp_path, models):
    file = headless_ldm.write(models.base, tmp_path / "thin.safetensors")
    module = ["--motion-module", models.motion_module]
    generate(run, tmp_path / "a.png", "--base", file, "--config", models.base, *module)
    generate(run, tmp_path / "b.png", "--base", models.base, *module)
    a, b = (np.array(Image.open(tmp_path / f"{n}.png")).astype(int) for n in "ab")
    assert np.abs(a - b).mean() < 1  # other memory layout, other kernels


# ---- warnings


def distilled(models, tmp_path, steps):
    module = checkpoint.load(models.motion_module).build()
    file = tmp_path / f"distilled_{steps}.safetensors"
    checkpoint.save(module, file, metadata={"steps": steps})
    return ["--base", models.base, "--motion-module", file]


@pytest.mark.slow
def test_doubtful_settings_are_named_once(run, tmp_path, models):
    four, two = distilled(models, tmp_path, 4), distilled(models, tmp_path, 2)
    out = tmp_path / "a.png"
    _, warned = generate(run, out, *four, "--steps", 3, "--cfg", 7)
    lines = warned.splitlines()
    assert lines == [
        "warning: this motion module was distilled for 4 steps, not 3; "
        "expect a worse clip than with --steps 4.",
        "warning: cfg 7 is high for a distilled motion module; "
        "use 1, or at most 2, to avoid burnt colours.",
    ]
    assert generate(run, out, *two, "--steps", 3, "--cfg", 2)[1] == ""
    assert generate(run, out, *two, "--steps", 2)[1] == ""
    _, warned = generate(run, out, *two, "--steps", 2, "--frames", 1)
    assert warned.startswith("warning: a single frame has no motion")
    _, warned = generate(run, out, *two, "--steps", 2, prompt="a BREAK b BREAK c")
    assert warned == (
        "warning: BREAK is an ordinary word in a prompt here, as in ComfyUI; "
        "it begins no new chunk.\n"
    )


@pytest.mark.slow
def test_weights_long_prompts_and_textual_inversions_change_the_clip(run, tmp_path):
    vectors = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    (tmp_path / "embeddings").mkdir()
    save_file({"emb_params": vectors}, tmp_path / "embeddings" / "glow.safetensors")
    folder = ("--embeddings", tmp_path / "embeddings")
    prompts = ("a cat", "a (cat:3)", "a cat" + ", long" * 40, "a cat embedding:glow")
    clips = [sheet(run, tmp_path / "a.png", *folder, prompt=prompt) for prompt in prompts]
    assert not any(np.array_equal(a, b) for a, b in combinations(clips, 2))
    unequal = (*folder, "--cfg", 2, "--negative-prompt", prompts[2])
    _, warned = generate(run, tmp_path / "a.png", *unequal, prompt=prompts[1])
    assert warned == ""


@pytest.mark.slow
def test_the_miniature_reads_the_syntax_too(run, tmp_path):
    out = tmp_path / "a.png"
    prompt = ("--prompt", "a (red:1e0) fish (swimming left)")
    code, _, warned = run("generate", *prompt, "--out", out, "--steps", 1, "--frames", 2)
    assert code == 0, warned
    assert out.exists()


@pytest.mark.slow
def test_quiet_tells_no_notes_and_verbose_which_files_it_reads(run, tmp_path, models):
    out = tmp_path / "a.png"
    four = distilled(models, tmp_path, 4)
    command = ("generate", "--prompt", "a cat", "--out", out, *SMALL, *four)
    assert "warning: " in run(*command)[2]
    code, said, told = run("--quiet", *command)
    assert (code, told) == (0, "")
    assert said.startswith(f"wrote {out}: ")
    assert f"debug: the motion module is {four[-1]}\n" in run("--verbose", *command)[2]
    assert "debug: " not in run(*command)[2]
    code, _, told = run("--quiet", "--verbose", *command)
    assert (code, told) == (2, "error: give either --verbose or --quiet, not both.\n")


# ---- errors


FISH = ["--prompt", "a red fish swimming left"]


ERRORS = {
    "no prompt": ([], "there is no prompt; give --prompt or --prompts FILE."),
    "blank prompts file": (["--prompts", "{blank}"], "blank.txt holds no prompts"),
    "prompts file missing": (["--prompts", "nowhere.txt"], "nowhere.txt was not found"),
    "prompts not text": (["--prompts", "{junk}"], "junk.bin is not UTF-8 text"),
    "both prompts": ([*FISH, "--prompts", "{blank}"], "either --prompt or --prompts, not both"),
    "image LoRA": (["--prompt", "a <lora:x:1>"], "<lora:x:1> in a prompt is the tag of an image"),
    "no embeddings": (["--prompt", "a embedding:x"], "give it with --embeddings FOLDER."),
    "embeddings folder": ([*FISH, "--embeddings", "{blank}"], "blank.txt is not a folder"),
    "embedding missing": (
        ["--prompt", "a embedding:x", "--embeddings", "{empty}"],
        "embedding:x in a prompt was not found in",
    ),
    "negative embedding": (
        [*FISH, "--negative-prompt", "embedding:x", "--embeddings", "{empty}"],
        "embedding:x in a prompt was not found in",
    ),
    "embedding of a module": (
        ["--prompt", "a embedding:wide", "--embeddings", "{tmp}", *using("{base}", "{module}")],
        "wide.safetensors is not a textual inversion",
    ),
    "steps 0": ([*FISH, "--steps", "0"], "steps must be between 1 and 1000, not 0."),
    "steps text": ([*FISH, "--steps", "four"], "should be a valid integer"),
    "frames 0": ([*FISH, "--frames", "0"], "frames must be between 1 and 4096, not 0."),
    "too many frames": ([*FISH, "--frames", "33"], "use --context-length 16, or fewer --frames."),
    "width": ([*FISH, "--width", "101"], "width must be a multiple of 2, not 101; try 100."),
    "height": ([*FISH, "--height", "4"], "height must be between 8 and 8192, not 4."),
    "cfg": ([*FISH, "--cfg", "nan"], "cfg must be between 0 and 100, not nan."),
    "seed": ([*FISH, "--seed", "-1"], "seed must be between 0 and"),
    "fps": ([*FISH, "--fps", "0"], "fps must be between 0.1 and 240, not 0.0."),
    "gif fps": ([*FISH, "--fps", "60", "--out", "{tmp}/a.gif"], "a GIF plays at most 50 fps"),
    "motion scale": ([*FISH, "--motion-scale", "-2"], "motion-scale must be between 0 and 10"),
    "sampler": ([*FISH, "--sampler", "ddim"], "'ddim' is not one of 'euler', 'dpmpp', 'lcm'."),
    "option": ([*FISH, "--step", "4"], "No such option: --step"),
    "extension": (
        [*FISH, "--out", "{tmp}/a.avi"],
        "the extension of a.avi is not supported; use one of .mp4",
    ),
    "out in a file": ([*FISH, "--out", "{blank}/a.mp4"], "cannot write into"),
    "out is a folder": ([*FISH, "--out", "{folder}"], "is a folder; give the name of a file."),
    "device": ([*FISH, "--device", "cuda:7"], "device 'cuda:7' is not available here"),
    "device name": ([*FISH, "--device", "gpu"], "device 'gpu' is not available here"),
    "base alone": ([*FISH, "--base", "{base}"], "--motion-module is missing; give both"),
    "module alone": ([*FISH, "--motion-module", "{module}"], "--base is missing; give both"),
    "base missing": (
        [*FISH, *using("no.safetensors", "{module}")],
        "no.safetensors was not found",
    ),
    "module missing": ([*FISH, *using("{base}", "no.ckpt")], "no.ckpt was not found"),
    "module is junk": (
        [*FISH, *using("{base}", "{junk}")],
        "junk.bin is damaged, or is not a PyTorch file; download it again",
    ),
    "module is a base": (
        [*FISH, *using("{base}", "{single}")],
        "is a Stable Diffusion checkpoint, not",
    ),
    "base is a module": (
        [*FISH, *using("{module}", "{module}")],
        "is a motion module; --base",
    ),
    "base is junk": ([*FISH, *using("{text}", "{module}")], "text.safetensors is a saved web page"),
    "base is empty": ([*FISH, *using("{empty}", "{module}")], "lacks unet/config.json"),
    "base is cut short": (
        [*FISH, *using("{truncated}", "{module}")],
        "truncated.safetensors is truncated",
    ),
    "unet only": ([*FISH, *using("{unet}", "{module}")], "holds no text encoder"),
    "no tokenizer": (
        [*FISH, *using("{single}", "{module}")],
        "pass --tokenizer DIR",
    ),
    "bad tokenizer": (
        [*FISH, *using("{single}", "{module}"), "--tokenizer", "{empty}"],
        "holds no tokenizer; it needs vocab.json and merges.txt.",
    ),
    "bad config": (
        [*FISH, *using("{single}", "{module}"), "--config", "{empty}"],
        "has no model_index.json; give a diffusers folder as --config.",
    ),
    "other shape": (
        [*FISH, *using("{single}", "{module}"), "--tokenizer", "{base}/tokenizer"],
        "thin.safetensors could not be read",
    ),
    "module does not fit": ([*FISH, *using("{base}", "{wide}")], "does not fit this base model"),
    "predicts x0": (
        [*FISH, *using("{sample}", "{module}")],
        "predicts 'sample', which is not",
    ),
}


@pytest.fixture(scope="module")
def places(models, tmp_path_factory):
    """Files that are wrong in every way, by the names that ERRORS uses."""
    tmp = tmp_path_factory.mktemp("bad")
    (tmp / "empty").mkdir()
    (tmp / "folder.mp4").mkdir()
    (tmp / "blank.txt").write_text("\n \n")
    (tmp / "junk.bin").write_bytes(b"\xff\xfejunk" * 50)
    (tmp / "text.safetensors").write_text("<html>404</html>" * 20)
    single = headless_ldm.write(models.base, tmp / "thin.safetensors")
    (tmp / "truncated.safetensors").write_bytes(single.read_bytes()[:100_000])
    unet = {k: t for k, t in load_file(single).items() if k.startswith("model.diffusion_model.")}
    save_file(unet, tmp / "unet.safetensors")
    sample = random_models.write(tmp / "sample", prediction_type="sample").base
    wide = random_models.unet(channels=(64, 64, 64, 64))
    checkpoint.save(random_models.motion_module(wide), tmp / "wide.safetensors")
    return {
        "tmp": tmp,
        "blank": tmp / "blank.txt",
        "junk": tmp / "junk.bin",
        "empty": tmp / "empty",
        "folder": tmp / "folder.mp4",
        "single": single,
        "unet": tmp / "unet.safetensors",
        "truncated": tmp / "truncated.safetensors",
        "sample": sample,
        "wide": tmp / "wide.safetensors",
        "text": tmp / "text.safetensors",
        "base": models.base,
        "module": models.motion_module,
    }


@pytest.mark.slow
@pytest.mark.parametrize("case", ERRORS)
def test_errors_are_one_sentence(run, tmp_path, monkeypatch, places, case):
    monkeypatch.chdir(tmp_path)
    template, sentence = ERRORS[case]
    arguments = [text.format(**places) for text in template]
    code, said, warned = run("generate", *arguments)
    lines = [line for line in warned.splitlines() if not line.startswith("note: ")]
    assert code == 2
    assert said == ""
    assert len(lines) == 1, warned
    assert lines[0].startswith("error: ")
    assert lines[0].endswith(".")
    assert sentence in lines[0]
    assert list(tmp_path.iterdir()) == []


# ---- Ctrl-C


@pytest.mark.multiprocess
@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="SIGINT is POSIX's")
def test_ctrl_c_leaves_no_file(tmp_path, models):  # noqa: ARG001 - made beforehand
    process = subprocess.Popen(
        [
            *PROGRAM,
            "generate",
            "--prompt",
            "a fish",
            "--steps",
            "1000",
            "--frames",
            "16",
            "--out",
            str(tmp_path / "clip.mp4"),
        ],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # a shell's background jobs ignore Ctrl-C, and so would what they start
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr.readline().startswith("note: ")
    time.sleep(2)  # into the thousand steps
    process.send_signal(signal.SIGINT)
    said, warned = process.communicate(timeout=30)
    assert process.returncode == 130
    assert said == ""
    assert warned.splitlines()[-1] == "stopped."
    assert "Traceback" not in warned
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_ctrl_c_while_writing_keeps_the_old_file(run, tmp_path, monkeypatch):
    out = tmp_path / "clip.gif"
    out.write_bytes(b"old")

    def interrupted(path, *_):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(clips.clip_writer, "_write_gif", interrupted)
    code, _, warned = run("generate", "--prompt", "a", "--out", out, *SMALL)
    assert code == 130
    assert warned.splitlines()[-1] == "stopped."
    assert [p.name for p in tmp_path.iterdir()] == ["clip.gif"]
    assert out.read_bytes() == b"old"


# ---- inspect and convert


@pytest.mark.slow
def test_inspect_tells_what_describe_does(run, models):
    expected = checkpoint.load(models.motion_module).describe()
    code, said, _ = run("inspect", models.motion_module, "--json")
    assert code == 0
    found = json.loads(said)
    for table in (found, expected):  # safetensors gives metadata in any order
        table["metadata"] = sorted(table["metadata"].split(", "))
    assert found == expected
    _, table, _ = run("inspect", models.motion_module)
    lines = table.splitlines()
    assert len(lines) == len(expected)
    column = lines[0].index(str(models.motion_module))
    for line, (label, text) in zip(lines, expected.items(), strict=True):
        assert line[:column].strip() == label
        assert label == "metadata" or line[column:] == text


def test_inspect_checks_the_weights_when_asked(run, tmp_path, models):
    tensors = load_file(models.motion_module)
    key = next(k for k in tensors if k.endswith("to_q.weight"))
    tensors[key][0, 0] = torch.nan
    save_file(tensors, tmp_path / "m.safetensors")
    assert run("inspect", tmp_path / "m.safetensors")[0] == 0
    code, _, warned = run("inspect", tmp_path / "m.safetensors", "--check")
    assert code == 2
    assert "has NaN or infinite values in" in warned


@pytest.mark.multiprocess
def test_inspect_needs_no_torch(models):
    script = (
        "import sys; from animatediff_lightning.distill.cli.program import main; "
        f"code = main(['inspect', {str(models.motion_module)!r}]); "
        "sys.exit(code or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.slow
def test_convert_there_and_back_is_bit_equal(run, tmp_path, models):
    source = tmp_path / "animatediff_lightning_4step_comfyui.safetensors"
    source.write_bytes(models.motion_module.read_bytes())
    code, said, _ = run("convert", source, "--to", "diffusers")
    there = tmp_path / "animatediff_lightning_4step_diffusers.safetensors"
    assert code == 0
    assert said.startswith(f"wrote {there} (")
    back = tmp_path / "sub" / "renamed.safetensors"
    assert run("convert", there, "--to", "comfyui", "--out", back)[0] == 0
    before, after = load_file(source), load_file(back)
    assert before.keys() == after.keys()
    assert all(
        torch.equal(before[k], after[k]) and after[k].dtype == before[k].dtype for k in before
    )
    with safe_open(back, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["steps"] == "4"  # which only the name told, and the new name does not
    assert metadata["family"].startswith("random weights")
    assert checkpoint.load(back).steps == 4


@pytest.mark.slow
def test_convert_overwrites_only_when_forced(run, tmp_path, models):
    out = tmp_path / "a.safetensors"
    out.write_bytes(b"precious")
    arguments = ["convert", models.motion_module, "--to", "diffusers", "--out", out]
    code, _, warned = run(*arguments)
    assert code == 2
    assert warned.startswith(f"error: {out} exists; pass --force")
    assert out.read_bytes() == b"precious"
    assert run(*arguments, "--force")[0] == 0
    assert checkpoint.load(out).layout == "diffusers"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["inspect", "nowhere.safetensors"], "nowhere.safetensors was not found"),
        (["inspect"], "Missing argument"),
        (["inspect", "{single}"], "is a Stable Diffusion checkpoint, not"),
        (["convert", "{module}", "--to", "onnx"], "is not one of 'comfyui', 'diffusers'"),
        (["convert", "{module}"], "Missing option '--to'"),
        (
            ["convert", "{module}", "--to", "comfyui", "--out", "{tmp}/a.ckpt"],
            "only as .safetensors",
        ),
        (
            ["convert", "{junk}", "--to", "comfyui", "--out", "{tmp}/b.safetensors"],
            "junk.bin is damaged, or is not a PyTorch file",
        ),
        (["paint"], "No such command 'paint'"),
    ],
)
def test_errors_of_the_other_commands(run, tmp_path, monkeypatch, places, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    code, said, warned = run(*(a.format(**places) for a in arguments))
    assert (code, said) == (2, "")
    assert warned.startswith("error: ")
    assert len(warned.splitlines()) == 1
    assert sentence in warned


def test_the_command_line_offers_every_sampler():
    assert [sampler.value for sampler in options.Sampler] == list(SAMPLERS)
