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
SMOKE = {  # of these scripts the named checks, or all
    "order_checks": None,
    "device_checks": None,
    "sampling_checks": (
        "check_frames_move_and_plain_model_stays_bit_equal",
        "check_clones_and_plain_runs_between",
        "check_cancelled_run_leaves_nothing",
        "check_weights_are_freed_with_the_graph",
        "check_ksampler_gives_the_same_clip",
    ),
    "context_checks": (
        "check_windows_equal_a_plain_loop_around_the_model",
        "check_core_controls_equal_each_window_by_hand",
        "check_cancelled_windows_leave_nothing",
    ),
    "lora_checks": (
        "check_weights_are_w_plus_strength_up_down",
        "check_plain_and_lora_do_not_mix_in_any_order",
    ),
    "preview_checks": ("check_windows_preview_the_whole_clip",),
    "video_checks": (
        "check_paths_stay_inside_the_input_folder",
        "check_core_nodes_take_what_comes_out",
    ),
}


def is_smoke(script: str, check: str) -> bool:
    """Tell whether the smoke set has a check."""
    return script in SMOKE and (SMOKE[script] is None or check in SMOKE[script])


CHECKS = [
    pytest.param(
        script,
        node.name,
        id=f"{script.stem}-{node.name}",
        marks=[pytest.mark.smoke] if is_smoke(script.stem, node.name) else [],
    )
    for script in SCRIPTS
    for node in ast.parse(script.read_text()).body
    if isinstance(node, ast.FunctionDef) and node.name.startswith("check_")
]


@pytest.fixture(scope="session")
def run_script(request, comfyui, thin_checkpoint):
    """Return a function that runs a script once and gives what each check printed, by its name.

    Of the smoke set it runs the named checks alone.
    """
    smoke = request.config.getoption("--hosts") == "smoke"
    done = {}

    def run(script):
        if script not in done:
            only = (SMOKE.get(script.stem) or ()) if smoke else ()
            process = subprocess.run(
                [comfyui.python, script, comfyui.folder, thin_checkpoint.parent, *only],
                capture_output=True,
                text=True,
                timeout=900,
                check=False,
                env=comfyui.environment,
            )
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
