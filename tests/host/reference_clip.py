"""Makes a clip inside a ComfyUI interpreter and writes it as tensors, for another host to match.

    PYTHON_OF_COMFYUI tests/host/reference_clip.py COMFYUI_FOLDER CHECKPOINT MOTION_FOLDER OUT

OUT (.safetensors) holds x, eps (one UNet call at timestep 999), text (the prompt's embedding),
latents (4 steps from seed 0, after the host's latent scaling is undone) and guided (the same at
cfg 2, from a prompt of several chunks and a negative prompt of one).
"""

import sys
from pathlib import Path

import host

PROMPT = "a red fish swimming left"
LONG_PROMPT, NEGATIVE_PROMPT = "a (red:1.4) fish, swimming (left), " * 12, "a (blurred:1.2) bird"
FRAMES, SIZE = 4, 8


def main(comfyui, checkpoint, motion_folder, out):
    host.start(comfyui)
    nodes = host.our_nodes()
    host.add_model_folder(motion_folder)
    import comfy.sd
    import safetensors.torch
    import torch

    base, clip, *_ = comfy.sd.load_checkpoint_guess_config(checkpoint, output_vae=False)
    text, long, short = (
        clip.encode_from_tokens_scheduled(clip.tokenize(prompt))[0][0]
        for prompt in (PROMPT, LONG_PROMPT, NEGATIVE_PROMPT)
    )
    (name,) = (path.name for path in Path(motion_folder).iterdir())
    module, _ = nodes["ADL_LoadMotionModule"].execute(name).result
    (model,) = nodes["ADL_ApplyMotionModule"].execute(base, module).result
    sigmas = host.submodule("samplers.schedule").sigmas(4)
    x = torch.randn(FRAMES, 4, SIZE, SIZE, generator=torch.Generator().manual_seed(5))
    eps = []
    unet = model.model.diffusion_model

    def once(_module, _inputs, output):
        eps.append(output)

    def start_from_x(executor, _noise, *args, **kwargs):
        return executor(x, *args, **kwargs)

    wanted = {"frames": FRAMES, "size": SIZE, "positive": text}
    latents = host.sample(model, sigmas, **wanted)
    guided = host.sample(model, sigmas, **wanted | {"positive": long, "negative": short}, cfg=2.0)
    clone = model.clone()
    clone.add_wrapper_with_key("outer_sample", "start_from_x", start_from_x)
    hook = unet.register_forward_hook(once)
    host.sample(clone, sigmas, **wanted)
    hook.remove()
    safetensors.torch.save_file(
        {
            "x": x,
            "eps": eps[0].float().contiguous(),
            "text": text.float().contiguous(),
            "latents": latents.contiguous(),
            "guided": guided.contiguous(),
        },
        out,
    )


if __name__ == "__main__":
    main(*sys.argv[1:5])
