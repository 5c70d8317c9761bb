"""Encodes prompts inside a ComfyUI interpreter and writes their embeddings, for another to match.

    PYTHON_OF_COMFYUI tests/host/prompt_text.py COMFYUI CHECKPOINT EMBEDDINGS_FOLDER PROMPTS OUT

PROMPTS (.json) holds prompts by name; OUT (.safetensors) what CLIPTextEncode makes of each.
"""

import json
import sys
from pathlib import Path

import host


def main(comfyui, checkpoint, embeddings, prompts, out):
    host.start(comfyui)
    import comfy.sd
    import safetensors.torch

    import nodes

    _, clip, *_ = comfy.sd.load_checkpoint_guess_config(
        checkpoint, output_vae=False, output_model=False, embedding_directory=embeddings
    )
    texts = {}
    for name, prompt in json.loads(Path(prompts).read_text()).items():
        (conditioning,) = nodes.CLIPTextEncode().encode(clip, prompt)
        texts[name] = conditioning[0][0].float().contiguous()
    safetensors.torch.save_file(texts, out)


if __name__ == "__main__":
    main(*sys.argv[1:6])
