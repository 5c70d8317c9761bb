"""Sliding windows of ours against ADE's: indices, weights, and latents from both in one process.

    COMFYUI_PATH=... ADE_PATH=... PYTHON_OF_COMFYUI benchmarks/parity_ade_windows.py [OUT.csv]
        [--fast]  # without full-size files: no latents

Indices and weights are compared for every schedule, fuse and step; latents (full-size random files,
64 x 64, 2 steps) for one fuse a schedule and one schedule a fuse. ADE's View Options are compared
with our windows inside the attention, see parity_ade_views.py. Fails above 1e-5, except where the
two are known to differ; each of those is printed.
"""

import csv
import itertools
import sys

import parity_ade_views

BAR = 1e-5
CASES = [(40, 16, 4), (33, 8, 2)]
SCHEDULES = {"static": "standard_static", "uniform": "standard_uniform", "looped": "looped_uniform"}
FUSES = ("pyramid", "relative", "flat", "overlap-linear")
SAMPLED = [
    ("static", "overlap-linear"),
    ("uniform", "pyramid"),
    ("looped", "flat"),
    ("static", "relative"),
]
STEPS = 8


def compare_windows(case, schedule, fuse, closed_loop):
    """Return the largest difference of normalised weights over all steps; None: other windows."""
    import contenders
    import host
    import torch

    frames, length, overlap = case
    module = host.submodule("samplers.context")
    theirs = sys.modules["animatediff_evolved.animatediff.context"]
    options = module.ContextOptions(length, overlap, schedule, fuse, closed_loop)
    group = contenders.ade_context(length, overlap, schedule, fuse, closed_loop)
    worst = 0.0
    for step in range(STEPS):
        plan = module.plan(frames, options, step)
        group.step = step
        windows = theirs.get_context_windows(frames, group)
        if [list(w) for w in plan.indices.tolist()] != [list(w) for w in windows]:
            return None
        weights = torch.stack([ade_weights(theirs, w, frames, group, fuse) for w in windows])
        total = torch.zeros(frames).index_add_(0, plan.indices.flatten(), weights.flatten())
        worst = max(worst, float((weights / total[plan.indices] - plan.weights).abs().max()))
    return worst


def ade_weights(theirs, window, frames, group, fuse):
    """Return the peer's weights; its "relative" is written inside its sampling loop."""
    import torch

    if fuse != "relative":
        weights = theirs.get_context_weights(len(window), frames, window, group)
        return torch.as_tensor(weights).float()
    first, last = window[0], window[-1]
    half = (last - first + 1e-2) / 2
    return torch.tensor([max(1e-2, 1 - abs(i - (first + last) / 2) / half) for i in window])


def compare_latents(base, makers, nodes, case, schedule, fuse):
    """Return the relative difference of the latents of two steps."""
    import contenders
    import host

    frames, *lengths = case
    contexts = {
        "ours": contenders.our_context(nodes, *lengths, schedule, fuse),
        "ade": contenders.ade_context(*lengths, schedule, fuse),
    }
    sigmas = contenders.trailing_sigmas(2)
    ours, ade = (
        host.sample(makers[name](base, contexts[name]), sigmas, size=8, frames=frames)
        for name in ("ours", "ade")
    )
    return float((ours - ade).norm() / ade.norm())


def window_rows():
    """Return rows of indices and weights for every case, schedule and fuse."""
    rows = []
    for case, (schedule, fuse) in itertools.product(CASES, itertools.product(SCHEDULES, FUSES)):
        for closed in (False, True) if schedule == "looped" else (False,):
            worst = compare_windows(case, schedule, fuse, closed)
            text = "other windows" if worst is None else f"{worst:.1e}"
            rows.append((*case, schedule, fuse, closed, "weights", text))
    return rows


def latent_rows():
    """Return rows of the latents, full-size; printed as they come."""
    import contenders
    import host

    base, makers = contenders.start("--cpu")
    nodes = host.our_nodes()
    for case, (schedule, fuse) in [(CASES[0], s) for s in SAMPLED] + [(CASES[1], SAMPLED[1])]:
        difference = compare_latents(base, makers, nodes, case, schedule, fuse)
        yield (*case, schedule, fuse, False, "latents", f"{difference:.1e}")
    yield from parity_ade_views.compare_runs(base, makers, nodes)


def main(out, fast):
    import contenders

    if fast:
        contenders.start_host("--cpu")
        rows = []
    else:
        rows = list(latent_rows())
    rows = window_rows() + parity_ade_views.compare_modules(CASES, SCHEDULES, FUSES) + rows
    with open(out, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ("frames", "length", "overlap", "schedule", "fuse", "closed_loop", "of", "difference")
        )
        writer.writerows(rows)
    return rows


def differs(row):
    """Tell whether a row is no number, or one above the bar."""
    try:
        return float(row[-1]) > BAR
    except ValueError:
        return True


def is_known(row):
    """Tell whether a row is one of the places where the two differ on purpose."""
    _, _, overlap, schedule, fuse, _, of, text = row
    return (
        (of == "weights" and (schedule, fuse) == ("looped", "relative"))
        or of in parity_ade_views.DIFFERENT
        or (of == parity_ade_views.ONE and fuse == "relative")
        or (text == parity_ade_views.RAISES and (overlap, fuse) == (0, "overlap-linear"))
    )


if __name__ == "__main__":
    names = [a for a in sys.argv[1:] if a != "--fast"]
    table = main(*(names or ["benchmarks/results/parity_ade_windows.csv"]), "--fast" in sys.argv)
    failed = [row for row in table if differs(row)]
    for row in failed:
        print("differs, as known:" if is_known(row) else "DIFFERS:", *row)
    sys.exit(1 if any(not is_known(row) for row in failed) else 0)
