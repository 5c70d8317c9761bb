"""Whatever a library raises on a user's file ends in one sentence, at every call of one.

CALLS is kept complete by a test that finds the calls in the source. A call that a command reaches
at once fails within that command; one that a command reaches after minutes fails within the
handler of all commands, under the function that holds the call.
"""

import ast
import importlib
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import torch
from animatediff_lightning.distill.cli.program import MISTAKE, UNFORESEEN, explain, main
from animatediff_lightning.distill.files.cache import CACHE_VARIABLE
from PIL import Image

from . import distil_files, headless_ldm, random_models

ROOT = Path(__file__).resolve().parents[1]
ENTRIES = {
    "DictReader",
    "VideoCapture",
    "filesystem",
    "from_config",
    "from_pretrained",
    "from_single_file",
    "is_tarfile",
    "load_config",
    "load_file",
    "safe_open",
    "snapshot_download",
    "urlopen",
    "Image.open",
    "av.open",
    "csv.reader",
    "json.load",
    "json.loads",
    "np.load",
    "tarfile.open",
    "tomllib.load",
    "tomllib.loads",
    "torch.load",
}
# (module, function, call): (what is replaced, where it is reached, whether the file is named)
CALLS: dict[tuple[str, str, str], tuple[str, str, bool]] = {
    ("distill.data.generate", "_members", "np.load"): ("numpy:load", "members", True),
    ("distill.data.generate_request", "fingerprint", "json.loads"): (
        "json:loads",
        "fingerprint",
        False,
    ),
    ("distill.data.latent_shards", "_decoded", "np.load"): ("numpy:load", "clip", False),
    ("distill.data.latent_shards", "write_tar", "tarfile.open"): (
        "tarfile:open",
        "write tar",
        False,
    ),
    ("distill.data.url_cache", "_opened_in_cloud", "fsspec.filesystem"): (
        "fsspec:filesystem",
        "stats of a cloud",
        True,
    ),
    ("distill.data.video_folder", "_read_table", "csv.DictReader"): (
        "csv:DictReader",
        "captions",
        False,
    ),
    ("distill.data.video_shards", "members", "tarfile.open"): (
        "tarfile:open",
        "stats",
        True,
    ),
    ("distill.engine.loop", "_resume", "torch.load"): ("torch:load", "resume", True),
    ("distill.engine.loop", "training_minutes", "torch.load"): ("torch:load", "minutes", True),
    ("distill.evaluate.fvd", "_read", "np.load"): ("numpy:load", "features", True),
    ("distill.evaluate.i3d_weights", "_read", "tarfile.is_tarfile"): (
        "tarfile:is_tarfile",
        "i3d",
        False,
    ),
    ("distill.evaluate.i3d_weights", "_read", "tarfile.open"): ("tarfile:open", "i3d", False),
    ("distill.files.claim", "_is_claimed", "json.loads"): ("json:loads", "claim", False),
    ("distill.files.clip_writer", "_write_mp4", "av.open"): ("av:open", "miniature", False),
    ("distill.files.records", "parse", "json.loads"): ("json:loads", "record", True),
    ("distill.miniature.probe", "load_probe", "load_file"): (".:load_file", "probe", False),
    ("distill.miniature.sample", "__init__", "csv.DictReader"): ("csv:DictReader", "table", True),
    ("distill.miniature.shipped", "_assemble", "load_file"): (".:load_file", "miniature", False),
    ("distill.miniature.shipped", "_assemble", "json.loads"): ("json:loads", "miniature", False),
    ("distill.miniature.shipped", "_assemble", "HaarVAE.from_config"): (
        ".:HaarVAE.from_config",
        "miniature",
        False,
    ),
    ("distill.models.base_model", "_load_vae", "HaarVAE.from_config"): (
        ".:HaarVAE.from_config",
        "miniature",
        True,
    ),
    ("distill.models.base_model", "_load_model", "kind.from_pretrained"): (
        ".:UNet2DConditionModel.from_pretrained",
        "folder",
        True,
    ),
    ("distill.models.base_model", "_scheduled_prediction_type", "json.loads"): (
        "json:loads",
        "folder",
        True,
    ),
    ("distill.models.headers", "empty_unet", "UNet2DConditionModel.from_config"): (
        ".:UNet2DConditionModel.from_config",
        "plan",
        True,
    ),
    ("distill.models.headers", "read_config", "json.loads"): ("json:loads", "factor", True),
    ("distill.models.single_file", "_convert", "kind.load_config"): (
        ".:UNet2DConditionModel.load_config",
        "single",
        True,
    ),
    ("distill.models.single_file", "_convert", "kind.from_config"): (
        ".:AutoencoderKL.from_config",
        "single",
        True,
    ),
    ("distill.models.single_file", "_convert", "kind.from_single_file"): (
        ".:UNet2DConditionModel.from_single_file",
        "single",
        True,
    ),
    ("distill.models.single_file", "_text_encoder", "CLIPTextConfig.from_pretrained"): (
        ".:CLIPTextConfig.from_pretrained",
        "single",
        True,
    ),
    ("distill.models.single_file", "_text_encoder", "CLIPTextModel.from_pretrained"): (
        ".:CLIPTextModel.from_pretrained",
        "single",
        True,
    ),
    ("distill.models.tokenizer", "load_tokenizer", "CLIPTokenizer.from_pretrained"): (
        ".:CLIPTokenizer.from_pretrained",
        "folder",
        True,
    ),
    ("distill.models.tokenizer", "_hub_tokenizer", "snapshot_download"): (
        ".:snapshot_download",
        "single without a tokenizer",
        True,
    ),
    ("distill.train.config", "read_config", "tomllib.loads"): (".:tomllib.loads", "plan", False),
    ("distill.train.curves", "_rows_before", "csv.DictReader"): ("csv:DictReader", "curves", True),
    ("distill.train.discriminator", "__init__", "UNet2DConditionModel.from_config"): (
        ".:UNet2DConditionModel.from_config",
        "plan",
        False,
    ),
    ("distill.train.plan", "_unet", "UNet2DConditionModel.from_config"): (
        ".:UNet2DConditionModel.from_config",
        "plan SD1.5",
        False,
    ),
    ("distill.train.plan", "_text_and_vae", "CLIPTextConfig.from_pretrained"): (
        ".:CLIPTextConfig.from_pretrained",
        "plan",
        True,
    ),
    ("distill.train.plan", "_text_and_vae", "json.loads"): ("json:loads", "plan", True),
    ("distill.train.plan", "_text_and_vae", "kind.from_config"): (
        ".:HaarVAE.from_config",
        "plan",
        True,
    ),
    ("distill.train.run_folder", "load", "torch.load"): ("torch:load", "checkpoint", True),
    ("motion_module.files", "_read_safetensors", "safetensors.safe_open"): (
        "safetensors:safe_open",
        "folder",
        False,
    ),
    ("motion_module.beside", "_read_json", "json.loads"): ("json:loads", "beside", False),
    ("motion_module.content", "read_header", "json.loads"): ("json:loads", "inspect", False),
    ("motion_module.pickles", "read", "torch.load"): ("torch:load", "pickle", False),
    ("motion_module.lora_scale", "_unpacked", "json.loads"): ("json:loads", "lora", False),
    ("video.animation", "frames", "Image.open"): ("PIL.Image:open", "animation", False),
    ("video.container", "open_video", "av.open"): ("av:open", "video", False),
}


def exit_code(command: Callable[[], object]) -> int:
    """Run what a command would, under the handler of all commands."""
    try:
        command()
    except Exception as error:
        return explain(error)
    return 0


class LibraryError(Exception):
    """Stands for a class of a library's own, which no release notes tell of."""


def calls_in(tree: ast.AST, function: str = "") -> list[tuple[str, str]]:
    """Return the function and the text of every call of a library that reads a user's file."""
    seen = []
    for node in ast.iter_child_nodes(tree):
        inner = node.name if isinstance(node, ast.FunctionDef) else function
        if isinstance(node, ast.Call):
            text = ast.unparse(node.func)
            if text in ENTRIES or text.rpartition(".")[2] in ENTRIES:
                seen.append((inner, text))
        seen += calls_in(node, inner)
    return seen


def test_the_table_holds_every_call_of_a_library_on_a_file():
    """A new call belongs into CALLS, under one_sentence where the file is the user's."""
    found = set()
    for folder in ("distill", "motion_module", "video"):
        for path in (ROOT / folder).rglob("*.py"):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found |= {(module, *call) for call in calls_in(ast.parse(path.read_text()))}
    assert found == set(CALLS)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Thin files, and a file for every place that is reached without a command."""
    tmp = tmp_path_factory.mktemp("files")
    models = random_models.ensure(tmp)
    for name in ("a.json", "a.npz", "a.pt", "a.csv", "a.tar"):
        (tmp / name).write_bytes(b"content")
    (tmp / "module.ckpt").write_bytes(b"content")
    (tmp / "1-1-00000002.pt").write_bytes(b"content")
    headless_ldm.write(models.base, tmp / "thin.safetensors")
    distil_files.write_config(tmp / "config.toml", tmp / "out", distil_files.write_pools(tmp / "p"))
    return tmp, models


def program(name: str, tmp: Path, models, out: Path) -> list[object] | None:
    """Return the command that reaches a call at once, None where it takes long."""
    clip = ["generate", "--prompt", "a fish", "--out", out / "a.mp4", "--frames", 3, "--steps", 1]
    module = ["--motion-module", models.motion_module]
    single = ["--base", tmp / "thin.safetensors", *module]
    return {
        "folder": [*clip, "--base", models.base, *module],
        "single": [*clip, *single, "--config", models.base],
        "single without a tokenizer": [*clip, *single],
        "pickle": [*clip, "--base", models.base, "--motion-module", tmp / "module.ckpt"],
        "miniature": clip,
        "inspect": ["inspect", models.motion_module],
        "plan": ["plan", tmp / "config.toml"],
        "stats": ["data", "stats", tmp / "a.tar"],
        "stats of a cloud": ["data", "stats", "gs://clips/a.tar"],
    }.get(name)


def function(name: str, tmp: Path, models, out: Path) -> Callable[[], object]:
    """Return a call of the function that a command reaches after other work."""

    def ours(module: str):
        return importlib.import_module(f"animatediff_lightning.{module}")

    def enter(manager) -> None:
        with manager:
            pass

    class Request:
        prompts = ()

        def as_record(self):
            return {}

        def __len__(self):
            return 0

    shards = ours("distill.data.latent_shards")
    loop, run_folder = ours("distill.engine.loop"), ours("distill.train.run_folder")
    curves = object.__new__(ours("distill.train.curves").Curves)
    curves.file = tmp / "a.csv"
    run = run_folder.RunFolder(tmp)
    generate = ours("distill.data.generate")
    return {
        "members": lambda: list(_members_of(generate, tmp / "a.npz")),
        "fingerprint": lambda: ours("distill.data.generate_request").DataRequest.fingerprint(
            Request()
        ),
        "record": lambda: ours("distill.data.import_videos")._read_record(tmp / "a.json"),
        "clip": lambda: shards.open_shards(str(tmp / "p" / "plain"))[0].read(0, False),
        "write tar": lambda: shards.write_tar(out / "b.tar", []),
        "captions": lambda: ours("distill.data.video_folder")._read_table(tmp / "a.csv"),
        "resume": lambda: loop._resume(tmp / "a.pt", {}, {}, None, None),
        "minutes": lambda: loop.training_minutes(
            (tmp / "a.pt").rename(tmp / loop.CHECKPOINT).parent
        ),
        "features": lambda: ours("distill.evaluate.fvd")._read(tmp / "a.npz"),
        "i3d": lambda: ours("distill.evaluate.i3d_weights")._read(tmp / "p/plain/clips-000000.tar"),
        "claim": lambda: ours("distill.files.claim")._is_claimed(
            tmp / "a.json", {}, "clips", None, ""
        ),
        "probe": lambda: ours("distill.miniature.probe").load_probe.__wrapped__(),
        "table": lambda: ours("distill.miniature.sample").Table(tmp / "a.csv"),
        "factor": lambda: ours("distill.models.headers").latent_factor(models.base),
        "plan SD1.5": lambda: ours("distill.train.plan")._unet.__wrapped__(None),
        "curves": lambda: curves._rows_before(run_folder.Place(0, 0, 0)),
        "checkpoint": lambda: _load_checkpoint(run, tmp / "1-1-00000002.pt"),
        "beside": lambda: ours("motion_module.beside")._read_json(tmp / "a.json"),
        "lora": lambda: ours("motion_module.lora_scale")._unpacked("{}"),
        "animation": lambda: list(_webp_decoder(ours, tmp / "a.webp").frames()),
        "video": lambda: enter(ours("video.container").open_video(tmp / "a.json")),
    }[name]


def _webp_decoder(ours, file: Path):
    pictures = [Image.new("RGB", (16, 16), color) for color in ("red", "blue")]
    pictures[0].save(file, save_all=True, append_images=pictures[1:])
    return ours("video.frames").open_decoder(file, file.name)


def _members_of(generate, file: Path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate, "_file", lambda *_: file)
        yield from generate._members(None, None, None)


def _load_checkpoint(run, file: Path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(run), "file", lambda *_: file)
        return run.load(None)


def break_call(monkeypatch, call, error: Exception) -> Counter:
    """Let a library's function raise where one function of ours calls it; counts how often."""
    module, function_name, _ = call
    place, _, path = CALLS[call][0].partition(":")
    ours = f"animatediff_lightning.{module}"
    owner = importlib.import_module(ours if place == "." else place)
    *way, name = path.split(".")
    for part in way:
        owner = getattr(owner, part)
    genuine, count = getattr(owner, name), Counter()

    def broken(*args, **options):
        caller = sys._getframe(1)
        if (caller.f_globals["__name__"], caller.f_code.co_name) == (ours, function_name):
            count["raised"] += 1
            raise error
        return genuine(*args, **options)

    monkeypatch.setattr(owner, name, staticmethod(broken) if isinstance(owner, type) else broken)
    return count


@pytest.mark.slow
@pytest.mark.parametrize("call", CALLS, ids=".".join)
def test_a_failure_within_a_library_ends_in_one_sentence(
    tmp_path, monkeypatch, capsys, files, call
):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    _, where, is_named = CALLS[call]
    count = break_call(monkeypatch, call, LibraryError("no such thing\nsecond line"))
    command = program(where, *files, tmp_path)
    if command is not None:
        code = main([str(part) for part in command])
    else:
        reached = function(where, *files, tmp_path)
        code = exit_code(reached)
    lines = capsys.readouterr().err.splitlines()
    assert count["raised"], "the call was not reached"
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1, lines
    assert errors[0].endswith(".")
    assert not any("Traceback" in line for line in lines)
    assert code == (MISTAKE if is_named else UNFORESEEN), errors
    assert ("internal error: LibraryError" in errors[0]) == (not is_named)


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (RuntimeError("a\n  b"), 1, "internal error: RuntimeError: a b; this is a fault of"),
        (KeyError("text_model"), 1, "internal error: KeyError: 'text_model'; this is a fault"),
        (LibraryError(), 1, "internal error: LibraryError: ; this is a fault of the program"),
        (ValueError("x is bad.\n"), 2, "error: x is bad.\n"),
        (ValueError(), 1, "internal error: ValueError: ; this"),
        (OSError(28, "No space left on device"), 2, "error: [Errno 28] No space left on device."),
        (MemoryError(), 2, "there is not enough memory (no more is given); lower the frames,"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has"),
            2,
            "not enough memory (CUDA out of memory); lower the frames, the width and height",
        ),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
            2,
            "there is not enough memory ([enforce fail] DefaultCPUAllocator",
        ),
    ],
)
def test_whatever_is_raised_becomes_one_sentence(capsys, error, code, sentence):
    def command():
        raise error

    assert exit_code(command) == code
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert sentence in said
    assert len(said.splitlines()) == 1


def test_the_traceback_of_an_internal_error_is_told_under_verbose(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    call = ("distill.miniature.shipped", "_assemble", "load_file")
    break_call(monkeypatch, call, LibraryError("no such thing"))
    command = ["generate", "--prompt", "a fish", "--out", str(tmp_path / "a.mp4")]
    assert main(["--verbose", *command]) == UNFORESEEN
    said = capsys.readouterr().err
    assert "debug: Traceback (most recent call last)" in said
    assert said.splitlines()[-1].startswith("error: internal error: LibraryError: no such thing; ")
    assert main(command) == UNFORESEEN
    assert "Traceback" not in capsys.readouterr().err
