"""Seconds a step and peak memory, ours and ADE's, full-size random files.

    COMFYUI_PATH=... ADE_PATH=... PYTHON_OF_COMFYUI benchmarks/step_time.py [--pairs 9] [--gpu]

Interleaved pairs in one process; a step is the time between the callbacks of step 1 and step 2, so
that loading counts for neither. 16 frames of 128 x 128 in F32 on a CPU, 512 x 512 on a GPU. Peak
memory is VmHWM of one process per contender. Writes benchmarks/results/step_time_<device>.csv.
"""

import argparse
import csv
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path


def seconds_a_step(model, size):
    """Return the seconds of the second of two steps."""
    import contenders
    import host
    import torch

    ends = []

    def on_step(*_):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        ends.append(time.perf_counter())

    host.sample(model, contenders.trailing_sigmas(2), size=size, callback=on_step)
    return ends[1] - ends[0]


def median_interval(ratios, draws=10000):
    """Return the bootstrap 95% interval of the median."""
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(ratios, k=len(ratios))) for _ in range(draws))
    return medians[int(0.025 * draws)], medians[int(0.975 * draws)]


def pairs(count, size, flags):
    """Return [(ours, ade)] seconds a step, alternating which goes first."""
    import contenders

    base, makers = contenders.start(*flags)
    models = {name: make(base) for name, make in makers.items()}
    out = []
    for i in range(count + 1):
        order = ("ours", "ade") if i % 2 else ("ade", "ours")
        seconds = {name: seconds_a_step(models[name], size) for name in order}
        if i:  # the first pair warms up
            out.append((seconds["ours"], seconds["ade"]))
            print(f"{seconds['ours']:.3f} {seconds['ade']:.3f}", flush=True)
    return out, contenders.machine()


def peak_memory_gib(name, size, flags):
    """Return VmHWM of a process that makes one clip with one contender."""
    command = [sys.executable, __file__, "--only", name, "--size", str(size), *flags]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(text.split()[-1]) / 2**20


def run_one(name, size, flags):
    """Sample once with one contender and print VmHWM in KiB."""
    import contenders

    base, makers = contenders.start(*flags)
    seconds_a_step(makers[name](base), size)
    status = Path("/proc/self/status").read_text()
    print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--only", choices=("ours", "ade"))
    parser.add_argument("--size", type=int, help="latent width")
    options, _ = parser.parse_known_args()
    flags = ("--bf16-unet",) if options.gpu else ("--cpu",)
    size = options.size or (64 if options.gpu else 16)
    if options.only:
        return run_one(options.only, size, flags)
    measured, machine = pairs(options.pairs, size, flags)
    ratios = [ours / ade for ours, ade in measured]
    low, high = median_interval(ratios)
    memory = {name: peak_memory_gib(name, size, flags) for name in ("ours", "ade")}
    device = "gpu" if options.gpu else "cpu"
    with open(f"benchmarks/results/step_time_{device}.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("ours_s", "ade_s", "ratio"))
        writer.writerows((f"{o:.4f}", f"{a:.4f}", f"{o / a:.4f}") for o, a in measured)
        median = statistics.median(ratios)
        writer.writerow(("median_ratio", f"{median:.4f}", f"[{low:.4f}, {high:.4f}]"))
        row = ("peak_gib", *(f"{memory[n]:.3f}" for n in ("ours", "ade")))
        writer.writerow((*row, f"{memory['ours'] / memory['ade']:.4f}"))
        writer.writerow(("machine", machine, f"{size * 8} x {size * 8}, 16 frames"))
        print(f"median ratio {median:.4f} [{low:.4f}, {high:.4f}], memory {memory}")
    return None


if __name__ == "__main__":
    main()
