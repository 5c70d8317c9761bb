"""Checks of Prompt Travel and Video Noise that run inside a ComfyUI interpreter.

    PYTHON_OF_COMFYUI tests/host/clip_checks.py COMFYUI_FOLDER MODELS_FOLDER

Each prints one JSON line; tests/test_host_in_process.py turns the lines into test results.
"""

import sys

from checking import CannotCheckError, Graph, close, equal, main, refusal, sample_with, told

SCRIPT = "0: a spring meadow\n6: the same meadow in snow, night"
LONG = ", ".join(["a very long description of a meadow"] * 20)


class Texts(Graph):
    """Our nodes over the thin model, with its text encoder."""

    def start(self, comfyui, models, motion_folder):
        super().start(comfyui, models, motion_folder)
        import comfy.sd

        path = str(self.models / "thin.safetensors")
        _, self.clip, *_ = comfy.sd.load_checkpoint_guess_config(path, output_vae=False)

    def travel(self, script=SCRIPT, frames=8, **kwargs):
        return self.nodes["ADL_PromptTravel"].execute(self.clip, script, frames, **kwargs).result[0]

    def encode(self, text):
        """Return what the core's CLIP Text Encode gives."""
        return self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))

    def noise(self, seed=0, *args, **kwargs):
        return self.nodes["ADL_VideoNoise"].execute(seed, *args, **kwargs).result[0]


GRAPH = Texts()


def sample(model, text, sigmas, frames=8, noise=None, cfg=1.0):
    """Sample with a CONDITIONING as positive, and another prompt as negative."""
    import comfy.samplers

    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(text, GRAPH.encode("blurry"))
    guider.set_cfg(cfg)
    return sample_with(guider, sigmas, frames, noise)


def warned(function):
    """Return what a call warned of."""
    with told() as sentences:
        function()
    return sentences


# ---- Prompt Travel -------------------------------------------------------------------------------


def check_one_embedding_a_frame_and_keyframes_are_the_cores():
    ((text, options),) = GRAPH.travel()
    ((spring, plain),) = GRAPH.encode("a spring meadow")
    ((snow, _),) = GRAPH.encode("the same meadow in snow, night")
    assert text.shape == (8, 77, 768), text.shape
    assert equal(text[:1], spring)
    assert equal(text[6:7], snow)
    assert equal(text[7:], snow)
    assert close(text[3:4], (spring + snow) / 2) < 1e-6
    assert set(options) == set(plain)
    assert options["pooled_output"].shape == (8, 768)
    assert equal(options["pooled_output"][:1], plain["pooled_output"])
    ((step, _),) = GRAPH.travel(interpolation="step")
    assert equal(step[5:6], spring)


def check_each_frame_is_painted_after_its_own_prompt():
    """Without motion, frame i equals frame i of a clip that has the prompt of i throughout."""
    ((text, _),) = GRAPH.travel()
    sigmas = GRAPH.core_sigmas(GRAPH.base, 2)
    for cfg in (1.0, 4.0):
        clip = sample(GRAPH.base, GRAPH.travel(), sigmas, cfg=cfg)
        for i in (0, 3, 7):
            whole = sample(GRAPH.base, [[text[i : i + 1], {}]], sigmas, cfg=cfg)
            assert close(clip[i], whole[i]) < 1e-5, (cfg, i, close(clip[i], whole[i]))
        assert close(clip[7], sample(GRAPH.base, GRAPH.encode("a spring meadow"), sigmas)[7]) > 1e-3


def check_it_changes_the_clip_with_motion_and_ends_where_it_says():
    model = GRAPH.apply()
    sigmas = GRAPH.sigmas(model, 2)
    still = sample(model, GRAPH.encode("a spring meadow"), sigmas)
    travelled = sample(model, GRAPH.travel(), sigmas)
    assert close(travelled[7], still[7]) > 1e-3
    same = sample(model, GRAPH.travel("0: a spring meadow"), sigmas)
    assert close(same, still) < 1e-6
    assert equal(sample(model, GRAPH.travel(), sigmas), travelled)


def check_long_prompts_paint_what_they_paint_alone():
    sigmas = GRAPH.core_sigmas(GRAPH.base, 2)
    script = f"0: a spring meadow\n7: {LONG}"
    ((text, _),) = GRAPH.travel(script)
    chunks = GRAPH.encode(LONG)[0][0].shape[1] // 77
    assert chunks > 1
    assert text.shape == (8, 77 * chunks, 768)
    clip = sample(GRAPH.base, GRAPH.travel(script), sigmas)
    assert close(clip[0], sample(GRAPH.base, GRAPH.encode("a spring meadow"), sigmas)[0]) < 1e-5
    assert close(clip[7], sample(GRAPH.base, GRAPH.encode(LONG), sigmas)[7]) < 1e-5


def check_scripts_with_errors_are_refused():
    for script, part in (
        ("0 a meadow", "line 1: no colon"),
        ("0: a\n8: b", "line 2: frame 8"),
        ("", "no prompt"),
        ("0: a\nx: b", "'x' is not a frame"),
    ):
        assert part in refusal(GRAPH.travel, script)
    node = GRAPH.nodes["ADL_PromptTravel"]
    assert "no text encoder" in refusal(node.execute, None, SCRIPT, 8)


def check_another_number_of_frames_than_the_latent_warns():
    model = GRAPH.apply()
    sigmas = GRAPH.sigmas(model, 4)
    for frames in (8, 12):
        (sentence,) = warned(lambda f=frames: sample(model, GRAPH.travel(frames=f), sigmas, 10))
        assert f"for {frames} frames" in sentence, sentence
        assert "the clip has 10" in sentence, sentence
    assert not warned(lambda: sample(model, GRAPH.travel(frames=10), sigmas, 10))
    assert not warned(lambda: sample(model, GRAPH.travel("0: a", frames=1), sigmas, 10))


# ---- Video Noise ---------------------------------------------------------------------------------


def core_noise(frames, seed=0, size=8):
    """Return what the core's Random Noise gives."""
    from comfy_extras.nodes_custom_sampler import Noise_RandomNoise

    return Noise_RandomNoise(seed).generate_noise(latent_of(frames, size))


def latent_of(frames, size=8, **more):
    import torch

    return {"samples": torch.zeros(frames, 4, size, size), **more}


def check_the_first_window_is_the_cores_noise():
    for size in (8, 9, 64):
        for frames in (16, 64):
            core, latent = core_noise(frames, 7, size), latent_of(frames, size)
            for mode in ("freenoise", "repeated", "independent"):
                noise = GRAPH.noise(7, mode).generate_noise(latent)
                assert noise.shape == core.shape
                assert equal(noise[:16], core[:16]), (mode, size)
            assert equal(GRAPH.noise(7, "constant").generate_noise(latent)[:1], core[:1])
    # the noise of the core's 16-frame clip too, as far as its generator gives the same
    assert equal(GRAPH.noise(7).generate_noise(latent_of(64))[:16], core_noise(16, 7))
    assert equal(GRAPH.noise(7, "independent").generate_noise(latent_of(64)), core_noise(64, 7))
    assert GRAPH.noise(7).seed == 7


def check_freenoise_equals_the_cores_own():
    """v0.8.0 has FreeNoise within its context windows; the same frames come out here."""
    import comfy.context_windows

    if not hasattr(comfy.context_windows, "apply_freenoise"):
        raise CannotCheckError("this ComfyUI has no FreeNoise of its own")
    for frames, length, overlap in ((40, 16, 4), (64, 16, 8), (33, 8, 2), (17, 16, 0), (45, 16, 4)):
        core = comfy.context_windows.apply_freenoise(core_noise(frames, 3), 0, length, overlap, 3)
        ours = GRAPH.noise(3, "freenoise", length, overlap).generate_noise(latent_of(frames))
        assert equal(ours, core), (frames, length, overlap)


def check_batch_index_gives_the_noise_of_the_whole_clip():
    for mode in ("freenoise", "repeated", "constant", "independent"):
        whole = GRAPH.noise(5, mode).generate_noise(latent_of(40))
        part = latent_of(3, batch_index=[20, 39, 2])
        assert equal(GRAPH.noise(5, mode).generate_noise(part), whole[[20, 39, 2]]), mode


def check_the_core_sampler_takes_it():
    import comfy.samplers
    from comfy_extras.nodes_custom_sampler import Noise_RandomNoise, SamplerCustomAdvanced

    model = GRAPH.apply()
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(GRAPH.encode("a"), GRAPH.encode("b"))
    guider.set_cfg(1.0)
    sampler = comfy.samplers.sampler_object("euler")

    def run(noise):
        arguments = (noise, guider, sampler, GRAPH.sigmas(model, 2), latent_of(8))
        if hasattr(SamplerCustomAdvanced, "define_schema"):
            return SamplerCustomAdvanced.execute(*arguments).result[0]["samples"]
        return SamplerCustomAdvanced().sample(*arguments)[0]["samples"]

    reference = run(Noise_RandomNoise(4))
    assert equal(run(GRAPH.noise(4)), reference)
    assert close(run(GRAPH.noise(4, "constant")), reference) > 1e-3
    assert close(run(GRAPH.noise(5)), reference) > 1e-3


def check_windows_without_advance_are_refused():
    assert "below context_length" in refusal(GRAPH.noise, 0, "freenoise", 8, 8)


if __name__ == "__main__":
    main(GRAPH, globals())
    sys.exit(0)
