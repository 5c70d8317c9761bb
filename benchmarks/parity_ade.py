"""Latents of ours against ADE's: same files, seed and steps, at 1, 2, 4 and 8 steps.

    COMFYUI_PATH=... ADE_PATH=... PYTHON_OF_COMFYUI benchmarks/parity_ade.py [OUT.csv]

Full-size random v2 files, 16 frames of 128 x 128. Fails where the relative difference passes 1e-5.
"""

import csv
import sys

BAR = 1e-5
STEPS = (1, 2, 4, 8)


def main(out):
    import contenders
    import host

    base, makers = contenders.start("--cpu")
    rows = []
    for steps in STEPS:
        latents = {}
        for name, make in makers.items():
            sigmas = contenders.trailing_sigmas(steps)
            latents[name] = host.sample(make(base), sigmas, size=16, seed=steps)
        difference = (latents["ours"] - latents["ade"]).norm() / latents["ade"].norm()
        motion = (latents["ours"][1:] - latents["ours"][:-1]).norm() / latents["ours"].norm()
        rows.append((steps, f"{difference:.2e}", f"{motion:.3f}", contenders.machine()))
        print(*rows[-1], sep="  ", flush=True)
    with open(out, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("steps", "relative_difference", "change_between_frames", "machine"))
        writer.writerows(rows)
    return max(float(r[1]) for r in rows)


if __name__ == "__main__":
    worst = main(sys.argv[1] if len(sys.argv) > 1 else "benchmarks/results/parity_ade.csv")
    sys.exit(f"relative difference {worst:.1e} is above {BAR}" if worst > BAR else 0)
