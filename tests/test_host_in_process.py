"""The nodes inside real ComfyUI interpreters: one process per host, one test per check.

Hosts are the folders of COMFYUI_PATH (":" between), else comfy-cli's default and its neighbours.
"""

import ast
import json
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "host" / "sampling_checks.py"
CHECKS = [
    node.name
    for node in ast.parse(SCRIPT.read_text()).body
    if isinstance(node, ast.FunctionDef) and node.name.startswith("check_")
]


@pytest.fixture(scope="module")
def results(comfyui, thin_checkpoint):
    """Return what each check printed, by its name."""
    run = subprocess.run(
        [comfyui.python, SCRIPT, comfyui.folder, thin_checkpoint.parent],
        capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    lines = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    found = {line["check"]: line["result"] for line in lines}
    assert found, run.stderr[-3000:]
    return found


@pytest.mark.parametrize("check", CHECKS)
def test_in_host(results, check):
    result = results.get(check, "the process ended before this check")
    assert result == "ok", result
