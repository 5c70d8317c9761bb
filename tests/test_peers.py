"""Advanced-ControlNet and IPAdapter_plus with our motion module and windows, where they are.

ADL_PEERS names the folder that holds their checkouts, ComfyUI-Advanced-ControlNet and
ComfyUI_IPAdapter_plus; their packages must be in the host's interpreter.
"""

import ast
import json
import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "host" / "peers.py"
CHECKS = [
    node.name
    for node in ast.parse(SCRIPT.read_text()).body
    if isinstance(node, ast.FunctionDef) and node.name.startswith("check_")
]
PEERS = os.environ.get("ADL_PEERS")


@pytest.fixture(scope="session")
def results(comfyui, thin_checkpoint):
    """What each check printed, by its name."""
    if not PEERS:
        pytest.skip("NO PEERS: set ADL_PEERS to the folder of Advanced-ControlNet and IPAdapter")
    process = subprocess.run(
        [comfyui.python, SCRIPT, comfyui.folder, thin_checkpoint.parent, PEERS],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
        env=comfyui.environment,
    )
    lines = [json.loads(x) for x in process.stdout.splitlines() if x.startswith("{")]
    return {line["check"]: line["result"] for line in lines} | {None: process.stderr[-3000:]}


@pytest.mark.parametrize("check", CHECKS)
def test_with_peers(results, check):
    assert check in results, f"the process ended before this check: {results[None]}"
    assert results[check] == "ok", results[check]
