"""The nodes inside real ComfyUI interpreters: one process per host and script, one test per check.

The scripts are tests/host/*_checks.py. Hosts are the folders of COMFYUI_PATH (":" between), else
comfy-cli's default.
"""

import ast
import json
import subprocess
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).parent / "host").glob("*_checks.py"))
CHECKS = [
    pytest.param(script, node.name, id=f"{script.stem}-{node.name}")
    for script in SCRIPTS
    for node in ast.parse(script.read_text()).body
    if isinstance(node, ast.FunctionDef) and node.name.startswith("check_")
]


@pytest.fixture(scope="session")
def run_script(comfyui, thin_checkpoint):
    """Return a function that runs a script once and gives what each check printed, by its name."""
    done = {}

    def run(script):
        if script not in done:
            process = subprocess.run(
                [comfyui.python, script, comfyui.folder, thin_checkpoint.parent],
                capture_output=True, text=True, timeout=900, check=False,
            )  # fmt: skip
            lines = [json.loads(x) for x in process.stdout.splitlines() if x.startswith("{")]
            done[script] = {line["check"]: line for line in lines}
            done[script][None] = process.stderr[-3000:]
        return done[script]

    return run


@pytest.mark.parametrize(("script", "check"), CHECKS)
def test_in_host(run_script, script, check):
    results = run_script(script)
    assert check in results, f"the process ended before this check: {results[None]}"
    if results[check]["lack"]:
        pytest.skip(results[check]["lack"])
    assert results[check]["result"] == "ok", results[check]["result"]
