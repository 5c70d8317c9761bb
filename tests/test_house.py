"""The rules of the house that no linter knows: who imports whom, what is shipped, what loads."""

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("distill", "motion_module", "nodes", "samplers", "video")
MAY_IMPORT = {
    "": {"nodes"},  # the root, within comfy_entrypoint
    "nodes": {"nodes", "motion_module", "samplers", "video"},
    "distill": {"distill", "motion_module", "samplers", "video"},
    "motion_module": {"motion_module"},
    "samplers": {"samplers"},
    "video": {"video"},
}
HOST = {
    "comfy",
    "comfy_api",
    "comfy_api_nodes",
    "comfy_config",
    "comfy_execution",
    "comfy_extras",
    "execution",
    "folder_paths",
    "latent_preview",
    "node_helpers",
    "nodes",
    "server",
}
# from above to below: the commands, what they run, what they share
ROOMS = (
    {"__main__"},
    {"cli"},
    {"train", "train_motion"},
    {"data", "evaluate"},
    {"generate"},
    {"miniature"},
    {"sampling"},
    {"engine", "files", "models"},
    {"library_errors"},
)
OURSELVES = {"animatediff_lightning", *PACKAGES}


def sources() -> list[Path]:
    files = [ROOT / "__init__.py"]
    return files + sorted(f for p in PACKAGES for f in (ROOT / p).rglob("*.py"))


def scripts() -> list[Path]:
    return [f for p in ("tests", "benchmarks") for f in sorted((ROOT / p).rglob("*.py"))]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def package_of(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    return parts[0] if len(parts) > 1 else ""


def absolute_imports(tree: ast.AST) -> Iterator[str]:
    """Yield the top-level names that a module imports, also through importlib."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.split(".")[0]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = ast.unparse(node.func).rpartition(".")[2]
            if called in ("import_module", "__import__", "find_spec"):
                yield str(node.args[0].value).split(".")[0]


def relative_imports(tree: ast.AST, path: Path) -> Iterator[str]:
    """Yield the packages of ours that a module imports relatively, such as "samplers"."""
    folder = path.relative_to(ROOT).parent.parts
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level > 0:
            assert node.level <= len(folder) + 1, f"{name_of(path)} imports from above the root"
            base = folder[: len(folder) + 1 - node.level]
            tail = node.module.split(".") if node.module else []
            if base or tail:
                yield (*base, *tail)[0]
            else:  # from .. import samplers
                yield from (alias.name for alias in node.names)


@pytest.fixture(scope="module")
def trees() -> dict[Path, ast.Module]:
    """Every module of the package, parsed."""
    return {path: ast.parse(path.read_text()) for path in sources()}


def test_the_reader_of_imports_sees_every_form():
    tree = ast.parse(
        "import comfy.ops as o\nfrom server import x\nimportlib.import_module('nodes')\n"
        "def f():\n  from ..distill.a import b\n  from .. import samplers, c\n  from . import d\n"
        "  from ... import g\n"
    )
    assert sorted(absolute_imports(tree)) == ["comfy", "nodes", "server"]
    path = ROOT / "nodes" / "deep" / "x.py"
    assert list(relative_imports(tree, path)) == ["nodes", "nodes", "nodes", "g"]
    tree.body[-1].body.pop()  # that one would leave the root from here
    path = ROOT / "nodes" / "x.py"
    assert list(relative_imports(tree, path)) == ["distill", "samplers", "c", "nodes"]


def imported_rooms(tree: ast.AST, path: Path) -> Iterator[str]:
    """Yield the rooms of distill/ that one of its modules imports: "train", or "generate"."""
    folder = path.relative_to(ROOT).parent.parts
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level > 0:
            base = folder[: len(folder) + 1 - node.level]
            target = (*base, *(node.module.split(".") if node.module else ()))
            if target == ("distill",):  # from .. import files
                yield from (alias.name for alias in node.names)
            elif target[:1] == ("distill",):
                yield target[1]


def test_arrows_between_packages(trees):
    for path, tree in trees.items():
        strangers = set(relative_imports(tree, path)) - MAY_IMPORT[package_of(path)]
        assert not strangers, f"{name_of(path)} may not import {strangers}"


def test_arrows_within_distill_go_down(trees):
    """A room imports rooms below its own; beside its own, generate is data's and evaluate's."""
    level = {room: n for n, rooms in enumerate(ROOMS) for room in rooms}
    arrows = {
        (path.relative_to(ROOT / "distill").with_suffix("").parts[0], room)
        for path, tree in trees.items()
        if package_of(path) == "distill"
        for room in imported_rooms(tree, path)
    }
    assert arrows, "no arrows were read"
    up = {(a, b) for a, b in arrows if a != b and level[a] >= level[b]}
    assert not up, f"arrows back up or across: {up}"


def test_only_the_nodes_know_the_host_and_only_their_host_folder_its_insides(trees):
    for path, tree in trees.items():
        allowed = set()
        if name_of(path).startswith("nodes/host/"):
            allowed = HOST - {"nodes", "comfy_extras"}
        elif package_of(path) == "nodes":
            allowed = {"comfy_api"}
        met = set(absolute_imports(tree)) & HOST
        assert met <= allowed, f"{name_of(path)} may not import {met - allowed}"


def test_we_import_ourselves_relatively(trees):
    """ComfyUI loads the folder under another name: an absolute import would fail or load twice."""
    for path, tree in trees.items():
        assert not set(absolute_imports(tree)) & OURSELVES, name_of(path)


def test_no_eval_and_no_exec(trees):
    """The registry bans both."""
    for path, tree in trees.items():
        calls = [n.func for n in ast.walk(tree) if isinstance(n, ast.Call)]
        assert not {"eval", "exec"} & {f.id for f in calls if isinstance(f, ast.Name)}, path


def test_every_module_says_what_it_is_in_ascii():
    for path in sources() + scripts():
        text = path.read_text(encoding="utf-8")
        assert ast.get_docstring(ast.parse(text)), f"{path} has no docstring"
        assert text.isascii(), path


def test_the_linter_passes_whatever_the_folder_is_called(tmp_path):
    """In a clone named as the package, relative imports of ours resolve to the absolute name."""
    clone = tmp_path / "animatediff_lightning"
    for path in [*sources(), *scripts(), ROOT / "pyproject.toml"]:
        copy = clone / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", clone]
    lint = subprocess.run(command, capture_output=True, text=True, check=False)
    assert lint.returncode == 0, lint.stdout


def test_the_root_imports_nothing_at_the_top():
    tree = ast.parse((ROOT / "__init__.py").read_text())
    assert not [n for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom, ast.Try))]


# ---- packaging ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pyproject() -> dict:
    tomllib = pytest.importorskip("tomllib", reason="python 3.11 reads TOML")
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_list_of_packages_equals_the_folders(pyproject):
    folders = {f.parent for f in sources() if f.name == "__init__.py"}
    names = {".".join(("animatediff_lightning", *f.relative_to(ROOT).parts)) for f in folders}
    assert set(pyproject["tool"]["setuptools"]["packages"]) == names
    # a folder without __init__.py would be left out of the wheel
    assert {f.parent for f in sources()} == folders


def test_the_manager_installs_nothing_that_only_training_needs(pyproject):
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    listed = {re.split(r"[^\w-]", x.lower())[0] for x in lines if x.strip() and x[0] != "#"}
    assert not listed & {"diffusers", "torch", "transformers", "typer", "comfyui"}
    ours = {re.split(r"[^\w-]", d)[0] for d in pyproject["project"]["dependencies"]}
    assert listed <= ours


def test_the_version_is_the_top_of_the_changelog(pyproject):
    entries = re.findall(r"^## (\S+) - \S", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert entries[0] == pyproject["project"]["version"]


# ---- import ------------------------------------------------------------------------------------

IMPORT = """
import sys, time
def once():
    sys.modules.pop("animatediff_lightning", None)
    start = time.perf_counter()
    import animatediff_lightning
    return time.perf_counter() - start
print(min(once() for _ in range(5)))
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def test_importing_is_quick_and_loads_neither_torch_nor_the_host():
    output = subprocess.run(
        [sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True, cwd=ROOT.parent
    ).stdout.splitlines()
    assert float(output[0]) < 0.05  # seconds
    loaded = set(output[1].split())
    assert "animatediff_lightning" in loaded
    assert not loaded & (HOST | {"torch", "diffusers", "numpy", "safetensors", "cv2", "av"})


def test_headless_packages_load_without_the_host():
    code = (
        "import sys, animatediff_lightning.samplers.euler\n"
        "import animatediff_lightning.motion_module.checkpoint\n"
        "import animatediff_lightning.motion_module.inject\n"
        "import animatediff_lightning.video.clip, animatediff_lightning.video.reader\n"
        "print(*sorted({n.partition('.')[0] for n in sys.modules}))"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent
    ).stdout
    assert not set(output.split()) & (HOST | {"diffusers", "transformers"})
