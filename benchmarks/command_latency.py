"""How long the command line takes to answer: minimum and median of five runs of whole commands.

    python benchmarks/command_latency.py [--checkout FOLDER] [--out CSV]

Each command is a new process with warm file caches; run it on a machine that does nothing else.
--checkout names another checkout of this repository, for a comparison.
"""

import argparse
import csv
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "command_latency_cpu.csv"
ROUNDS = 5
COMMANDS = {  # with the most that a command should take, in seconds
    "--help": (["--help"], 0.5),
    "inspect FILE": (
        ["inspect", "{pack}/distill/miniature/weights/motion_module.safetensors"],
        1.5,
    ),
    "a mistake": (["generate", "--prompt", "a red fish", "--steps", "many", "--out", "c.mp4"], 1.0),
    "plan paper": (["plan", "paper"], 10.0),
    "generate": (
        ["generate", "--prompt", "a red fish swimming left", "--out", "{out}/clip.mp4"],
        6.0,
    ),
}


def seconds(arguments, pack):
    """Return how long a command of a checkout runs; one that cannot run ends the benchmark."""
    environment = os.environ | {"PYTHONPATH": str(pack.parent)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # or Python would compile us each time
    with tempfile.TemporaryDirectory() as out:
        filled = [a.format(pack=pack, out=out) for a in arguments]
        command = [sys.executable, "-m", f"{pack.name}.distill", *filled]
        start = time.perf_counter()
        # outside the checkout, which a fresh install would not find on its path
        done = subprocess.run(
            command,
            cwd=out,
            capture_output=True,
            text=True,
            env=environment,
            check=False,
        )
        took = time.perf_counter() - start
    if done.returncode not in (0, 2) or "Traceback" in done.stderr:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return took


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkout", type=Path, default=Path(__file__).resolve().parents[1])
    parser.add_argument("--out", type=Path, default=RESULTS, help="the table")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as parent:
        pack = Path(parent) / "animatediff_lightning"
        pack.symlink_to(options.checkout.resolve())
        for name, (arguments, bound) in COMMANDS.items():
            seconds(arguments, pack)  # warm
            taken = [seconds(arguments, pack) for _ in range(ROUNDS)]
            rows.append(
                {
                    "command": name,
                    "minimum_s": f"{min(taken):.2f}",
                    "median_s": f"{statistics.median(taken):.2f}",
                    "wanted_s": bound,
                    "machine": f"{platform.machine()}, {os.cpu_count()} cores",
                }
            )
            print(rows[-1])
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
