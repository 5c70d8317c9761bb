"""Plain and motion runs on one checkpoint in every order, ours and ADE's: how far each run is off.

    COMFYUI_PATH=... ADE_PATH=... ADL_HOST_MODE=dynamic PYTHON_OF_COMFYUI benchmarks/orders_ade.py \
        [OUT.csv]

Full-size random v2 files, 4 frames of 64 x 64, 4 steps; sigmas from the MODEL that is sampled, by
the core's `simple`. A run is compared with the same one as the first on a checkpoint of its own.
ADL_HOST_MODE=dynamic emulates dynamic VRAM (tests/host/dynamic_vram.py). Fails where ours is off.
"""

import csv
import os
import sys

ORDERS = ("plain motion motion plain", "motion plain motion")
STEPS, FRAMES = 4, 4
MODE = os.environ.get("ADL_HOST_MODE", "legacy")


def main(out):
    import contenders
    import host

    _, makers = contenders.start("--cpu")
    import comfy.model_management
    import comfy.samplers

    def fresh():
        return host.load_base(contenders.MODELS / "random_sd15.safetensors")

    def run(model):
        sampling = model.get_model_object("model_sampling")
        sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", STEPS)
        return host.sample(model, sigmas, frames=FRAMES)

    plain = run(fresh())
    rows = []
    for contender, make in makers.items():
        first = {"plain": plain, "motion": run(make(fresh()))}
        for unloads in (False, True):
            for order in ORDERS:
                base = fresh()
                models = {"plain": base, "motion": make(base)}
                for place, name in enumerate(order.split(), 1):
                    try:
                        clip = run(models[name])
                        off = f"{float((clip - first[name]).norm() / first[name].norm()):.2e}"
                    except ValueError as error:
                        off = f"refused: {error}"
                    rows.append((contender, order, unloads, place, name, off))
                    print(*rows[-1], sep="  ", flush=True)
                    if unloads:
                        comfy.model_management.unload_all_models()
    with open(out, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("contender", "order", "unload_after_each", "place", "run", "off_by"))
        writer.writerows(rows)
        writer.writerow((f"{MODE}; {contenders.machine()}",))
    return [row for row in rows if row[0] == "ours" and row[-1] != "0.00e+00"]


if __name__ == "__main__":
    wrong = main(sys.argv[1] if len(sys.argv) > 1 else f"benchmarks/results/orders_ade_{MODE}.csv")
    sys.exit(f"{len(wrong)} runs of ours are off" if wrong else 0)
