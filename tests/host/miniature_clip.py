"""Makes a clip of the bundled miniature inside a ComfyUI interpreter and writes its latents.

    PYTHON_OF_COMFYUI tests/host/miniature_clip.py COMFYUI_FOLDER UNET TEXT WEIGHTS_FOLDER OUT

UNET: the base's UNet under the host's keys; TEXT: a prompt's embedding, "text". The miniature is no
SD1.5, so no loader of the host knows it: its UNet is the host's own class in the miniature's shape.
OUT holds "motion" (the 4-step student) and "still" (the base alone), 4 steps from seed 0.
"""

import sys

import host

STUDENT, FRAMES, SIZE, CHANNELS = "4step.safetensors", 16, 8, 12


def miniature(unet_file):
    """Return the host's MODEL of a miniature base: v prediction, latents as they are."""
    import comfy.latent_formats
    import comfy.model_base
    import comfy.supported_models
    import comfy.utils
    import torch
    from comfy.model_patcher import ModelPatcher

    config = comfy.supported_models.SD15(
        {
            "image_size": SIZE,
            "in_channels": CHANNELS,
            "out_channels": CHANNELS,
            "model_channels": 32,
            "channel_mult": (1, 2),
            "num_res_blocks": [2, 2],
            "transformer_depth": [1, 1, 0, 0],
            "transformer_depth_output": [1, 1, 1, 0, 0, 0],
            "transformer_depth_middle": 1,
            "use_spatial_transformer": True,
            "context_dim": 64,
            "legacy": False,
            "adm_in_channels": None,
            "use_linear_in_transformer": False,
            "use_temporal_attention": False,
            "dtype": torch.float32,
        },
    )
    config.unet_config["num_heads"] = 4  # the class itself sets SD1.5's eight
    config.latent_format = comfy.latent_formats.LatentFormat()
    config.latent_format.latent_channels = CHANNELS
    model = comfy.model_base.BaseModel(config, comfy.model_base.ModelType.V_PREDICTION)
    model.diffusion_model.load_state_dict(comfy.utils.load_torch_file(unet_file), strict=True)
    cpu = torch.device("cpu")
    return ModelPatcher(model.eval(), load_device=cpu, offload_device=cpu)


def main(comfyui, unet_file, text_file, weights, out):
    host.start(comfyui)
    nodes = host.our_nodes()
    host.add_model_folder(weights)
    import comfy.samplers
    import comfy.utils
    import safetensors.torch
    import torch

    base = miniature(unet_file)
    text = comfy.utils.load_torch_file(text_file)["text"]
    module, steps = nodes["ADL_LoadMotionModule"].execute(STUDENT).result
    assert steps == 4, steps
    (model,) = nodes["ADL_ApplyMotionModule"].execute(base, module).result
    sigmas = host.submodule("samplers.schedule").sigmas(4)

    core = comfy.samplers.calculate_sigmas(base.get_model_object("model_sampling"), "simple", 4)
    wanted = {"start": torch.zeros(FRAMES, CHANNELS, SIZE, SIZE), "positive": text}
    clips = {
        "motion": host.sample(model, sigmas, **wanted),
        "still": host.sample(base, core, **wanted),
    }
    safetensors.torch.save_file(clips, out)


if __name__ == "__main__":
    main(*sys.argv[1:6])
