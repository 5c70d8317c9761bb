"""Runs every host test in every ComfyUI and mode of this machine, and writes the table.

    .venv/bin/python tests/host/matrix.py [--out FILE] [--only NAME] [pytest arguments]

A row is a host and mode (see tests/conftest.py): passed, failed, skipped with the reasons, minutes.
With --frontend FOLDER the browser tests of the newest host are run once more with that
comfyui-frontend-package (its folder `static`) and Nodes 2.0 switched on.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = (
    "test_host_in_process.py",
    "test_host_server.py",
    "test_host_video.py",
    "test_host_front.py",
    "test_workflows_on_host.py",
    "test_two_hosts.py",
    "test_peers.py",
    "test_browser.py",
)
HEAD = ("host", "mode", "passed", "failed", "skipped", "minutes")


def row(name, mode, tests, arguments, environment):
    """Run tests on one host in one mode; returns a row of the table."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "pytest",
                "-q",
                "--hosts",
                "all",
                "--host-mode",
                mode,
                f"--junitxml={report}",
                *(str(ROOT / "tests" / test) for test in tests),
                *arguments,
            ],
            cwd=ROOT,
            env=os.environ | environment,
            check=False,
        )
        cases = list(xml.etree.ElementTree.parse(report).iter("testcase"))
    failed = [c for c in cases if c.find("failure") is not None or c.find("error") is not None]
    skipped = [c.find("skipped") for c in cases]
    skips = Counter(skip.get("message") for skip in skipped if skip is not None)
    for case in failed:
        print(f"FAILED {name} {mode}: {case.get('classname')}::{case.get('name')}", flush=True)
    told = "; ".join(f"{count}: {reason}" for reason, count in skips.items()) or "0"
    passed = len(cases) - len(failed) - skips.total()
    minutes = f"{(time.monotonic() - start) / 60:.1f}"
    if done.returncode not in (0, 1) or not passed:
        return name, mode, passed, f"{len(failed)}, and pytest broke off", told, minutes
    return name, mode, passed, len(failed), told, minutes


def hosts(only):
    """Yield (folder, modes) of every ComfyUI that the tests find."""
    code = (
        "from tests.conftest import HOSTS\n"
        "for host in HOSTS: print(host.folder, host.mode, sep='\t')"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for line in found.splitlines():
        folder, mode = line.split("\t")
        if only is None or only in f"{Path(folder).name} {mode}":
            yield Path(folder), mode


def version(folder):
    """Return the version of a ComfyUI, as numbers."""
    text = (folder / "comfyui_version.py").read_text()
    return [int(number) for number in re.findall(r"\d+", text.rpartition("=")[2])]


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, help="file of the table, in Markdown")
    parser.add_argument("--only", help="hosts whose name and mode contain this")
    parser.add_argument("--frontend", type=Path, help="folder of another frontend's static files")
    parser.add_argument("--at-once", type=int, default=2, help="rows at a time (default: 2)")
    options, arguments = parser.parse_known_args()
    found = list(hosts(options.only))
    if not found:
        sys.exit("no ComfyUI was found; see CONTRIBUTING.md.")
    with ThreadPoolExecutor(options.at_once) as threads:
        rows = list(
            threads.map(
                lambda host: row(
                    host[0].name, host[1], TESTS, arguments, {"COMFYUI_PATH": str(host[0])}
                ),
                found,
            )
        )
    if options.frontend is not None:
        folder, _ = max(found, key=lambda host: version(host[0]))
        other = {
            "COMFYUI_PATH": str(folder),
            "ADL_FRONTEND": str(options.frontend.resolve()),
            "ADL_NODES_2": "1",
        }
        name = f"{folder.name}, {frontend_version(options.frontend)}, Nodes 2.0"
        rows.append(row(name, "legacy", ("test_browser.py",), arguments, other))
    table = "\n".join("| " + " | ".join(map(str, r)) + " |" for r in (HEAD, ["---"] * 6, *rows))
    print(table)
    if options.out is not None:
        options.out.write_text(table + "\n")
    sys.exit(any(r[3] for r in rows))


def frontend_version(static):
    """Return the name and version of the package that a folder of static files belongs to."""
    [info] = static.resolve().parent.parent.glob("comfyui_frontend_package-*.dist-info")
    return info.name.removesuffix(".dist-info").replace("_", "-")


if __name__ == "__main__":
    main()
