"""Long clips in windows, ours (around the model, inside the attention) and ADE's: time and memory.

    COMFYUI_PATH=... ADE_PATH=... PYTHON_OF_COMFYUI benchmarks/long_video.py [time memory report]
        [--cases 64/4 64/8 128/4] [--rounds 7] [--size 16x8] [--out FOLDER]

Full-size random files, static windows of 16 frames in F32 on a CPU. Cases are frames/overlap. In
each round all three contenders evaluate one step in one process, in turn first; only the model call
is timed, so that loading counts for none. Peak memory is VmHWM of one process per contender. Rounds
that the CSV files hold from the same machine and size are kept, so that a run can be split or
resumed. The report fails where a bar is missed.
"""

import argparse
import csv
import statistics
import subprocess
import sys
import time
from pathlib import Path

from step_time import median_interval

CONTENDERS = ("ade", "latents", "features")
WINDOW = 16
CASES = ("64/4", "64/8", "128/4")
MEMORY_CASES = ("32/4", "64/4", "128/4")
FEATURES_BARS = {"64/4": 0.88, "64/8": 0.65}  # of ADE's time; by FLOP 0.82 and 0.61
LATENTS_BAR = 1.03  # of ADE's time, with the interval's lower end at most 1
FLAT = 0.05
ROUND_FIELDS = (
    "case",
    *(f"{c}_s" for c in CONTENDERS),
    *(f"{c}_cpu_s" for c in CONTENDERS),
    "size",
    "machine",
)
MEMORY_FIELDS = ("case", "contender", "gib", "size", "machine")


def load(case, names):
    """Start the host; return name -> MODEL with the windows of a case."""
    import contenders
    import host

    base, makers = contenders.start("--cpu")
    nodes, overlap = host.our_nodes(), int(case.split("/")[1])
    shape = (WINDOW, overlap, "static", "pyramid")

    def model(name):
        if name == "ade":
            contenders.ade_pack()
            return makers["ade"](base, contenders.ade_context(*shape))
        return makers["ours"](base, contenders.our_context(nodes, *shape, where=name))

    return {name: model(name) for name in names}


def evaluate(model, frames, size):
    """Return the seconds and the processor seconds of the one model call of a one-step run."""
    import contenders
    import host
    import torch

    clocks = (time.perf_counter, time.process_time)
    seconds = []

    def timed(executor, *args, **kwargs):
        begin = [clock() for clock in clocks]
        out = executor(*args, **kwargs)
        seconds.extend(clock() - b for clock, b in zip(clocks, begin, strict=True))
        return out

    model = model.clone()
    model.add_wrapper_with_key("predict_noise", "stopwatch", timed)
    start = torch.zeros(frames, 4, *size)
    host.sample(model, contenders.trailing_sigmas(1), frames=frames, start=start)
    return seconds


def measure_rounds(case, first, last, options):
    """Time rounds first..last-1 of a case, and append each to the CSV as soon as it is there."""
    import contenders

    models = load(case, CONTENDERS)
    frames = int(case.split("/")[0])
    for name in CONTENDERS:  # a round that does not count: lazy loading, first touch of memory
        evaluate(models[name], min(frames, 2 * WINDOW), latent_size(options))
    for i in range(first, last):
        order = CONTENDERS[i % 3 :] + CONTENDERS[: i % 3]
        taken = {name: evaluate(models[name], frames, latent_size(options)) for name in order}
        columns = [f"{taken[n][clock]:.4f}" for clock in (0, 1) for n in CONTENDERS]
        row = dict(zip(ROUND_FIELDS, (case, *columns, options.size, contenders.machine())))  # noqa: B905
        append(rounds_file(options), ROUND_FIELDS, row)
        print(case, *columns, flush=True)


def measure_memory(case, name, options):
    """Run one step with one contender and append the VmHWM of this very process."""
    import contenders

    frames = int(case.split("/")[0])
    evaluate(load(case, [name])[name], frames, latent_size(options))
    lines = Path("/proc/self/status").read_text().splitlines()
    kib = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    row = (case, name, f"{kib / 2**20:.3f}", options.size, contenders.machine())
    append(memory_file(options), MEMORY_FIELDS, dict(zip(MEMORY_FIELDS, row, strict=True)))
    print(*row[:3], "GiB", flush=True)


def in_own_process(*arguments):
    """Run this command again, so that a case or a contender has a process of its own."""
    subprocess.run([sys.executable, __file__, *arguments], check=True)


def latent_size(options):
    """Return (height, width) of the latents."""
    return tuple(int(n) for n in options.size.split("x"))


def rounds_file(options):
    return Path(options.out) / "long_video_cpu.csv"


def memory_file(options):
    return Path(options.out) / "long_video_memory.csv"


def append(path, fields, row):
    """Append a row, after the header where the file is new."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, fields)
        if new:
            writer.writeheader()
        writer.writerow(row)


def rows(path, options, **wanted):
    """Return the rows of the size asked for that have the wanted values."""
    wanted |= {"size": options.size}
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [r for r in csv.DictReader(file) if all(r[k] == v for k, v in wanted.items())]


def report_time(case, options):
    """Print the ratios of a case; return a sentence for each bar that it misses."""
    measured = rows(rounds_file(options), options, case=case)
    if not measured:
        return []
    results = {}
    for clock in ("s", "cpu_s"):
        for name, other in (("latents", "ade"), ("features", "ade"), ("features", "latents")):
            column = f"{name}_{clock}", f"{other}_{clock}"
            ratios = [float(r[column[0]]) / float(r[column[1]]) for r in measured]
            median, (low, high) = statistics.median(ratios), median_interval(ratios)
            results[name, other, clock] = median, low
            text = f"{median:.3f} [{low:.3f}, {high:.3f}] of {len(ratios)} rounds"
            print(f"{case:>6} {clock:>5} {name} : {other} {text}")
    return missed_bars(case, results["latents", "ade", "s"], results["features", "ade", "s"])


def missed_bars(case, latents, features):
    """Return a sentence for each bar that (median, lower end) of a ratio to ADE misses."""
    missed = []
    if latents[0] > LATENTS_BAR or latents[1] > 1:
        missed.append(f"{case}: latents {latents[0]:.3f}, lower end {latents[1]:.3f}")
    if features[0] > FEATURES_BARS.get(case, 1.0):
        missed.append(f"{case}: features {features[0]:.3f}, bar {FEATURES_BARS.get(case, 1.0)}")
    return missed


def report_memory(options):
    """Print the peaks; return a sentence where `latents` grows with the number of frames."""
    measured = rows(memory_file(options), options)
    for row in measured:
        print(f"{row['case']:>6} {row['contender']:>9} {row['gib']} GiB")
    peaks = {r["case"]: float(r["gib"]) for r in measured if r["contender"] == "latents"}
    if peaks and max(peaks.values()) > (1 + FLAT) * min(peaks.values()):
        return [f"memory of latents is not flat: {peaks}"]
    return []


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=["time", "memory", "report"])
    parser.add_argument("--cases", nargs="+", help="frames/overlap")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--size", default="16x8", help="height x width of the latents")
    parser.add_argument("--out", default="benchmarks/results")
    parser.add_argument("--only", choices=CONTENDERS, help="memory: just this contender")
    options = parser.parse_args()
    if set(options.parts) - {"time", "memory", "report"}:
        parser.error("the parts are time, memory and report, before any option.")
    common = ("--size", options.size, "--out", options.out)
    if "time" in options.parts:
        run_rounds(options, common)
    if "memory" in options.parts:
        run_memory(options, common)
    if "report" not in options.parts:
        return
    missed = [s for case in options.cases or CASES for s in report_time(case, options)]
    missed += report_memory(options)
    sys.exit("missed:\n" + "\n".join(missed) if missed else 0)


def run_rounds(options, common):
    """Measure the rounds that are missing, each case in a process of its own."""
    cases = options.cases or CASES
    for case in cases:
        done = len(rows(rounds_file(options), options, case=case))
        if done >= options.rounds:
            continue
        if len(cases) == 1:
            measure_rounds(case, done, options.rounds, options)
        else:
            in_own_process("time", "--cases", case, "--rounds", str(options.rounds), *common)


def run_memory(options, common):
    """Measure the peaks that are missing, each contender in a process of its own."""
    cases = options.cases or MEMORY_CASES
    names = [options.only] if options.only else CONTENDERS
    for case in cases:
        for name in names:
            if rows(memory_file(options), options, case=case, contender=name):
                continue
            if options.only and len(cases) == 1:
                measure_memory(case, name, options)
            else:
                in_own_process("memory", "--cases", case, "--only", name, *common)


if __name__ == "__main__":
    main()
