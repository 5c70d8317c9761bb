"""The preview while sampling, inside a ComfyUI interpreter; each check prints one JSON line.

PYTHON_OF_COMFYUI tests/host/preview_checks.py COMFYUI_FOLDER MODELS_FOLDER [CHECK ...]
"""

import contextlib

import host
from checking import Graph, equal, main, outputs

GRAPH = Graph()
SHOWN_OF_16 = [0, 2, 4, 6, 8, 9, 11, 13, 15]
SIZE = 8  # of a latent's side, which is the side of its picture too


@contextlib.contextmanager
def previews(method="latent2rgb"):
    """Set the host's preview method and give the list of pictures that it sends, None for none."""
    import comfy.utils
    from comfy.cli_args import LatentPreviewMethod, args

    sent, before = [], args.preview_method
    args.preview_method = LatentPreviewMethod(method)
    comfy.utils.set_progress_bar_global_hook(
        lambda _value, _total, preview, **_: sent.append(preview and preview[1])
    )
    try:
        yield sent
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
        args.preview_method = before


def recording(model):
    """Return a clone of a MODEL, and the list that will hold each step's x0."""
    seen, model = [], model.clone()
    model.set_model_sampler_post_cfg_function(
        lambda args: seen.append(args["denoised"].clone()) or args["denoised"]
    )
    return model, seen


def drawn(x0, frames):
    """Return what the host's own previewer draws of each of some frames."""
    import latent_preview
    from comfy.latent_formats import SD15

    previewer = latent_preview.Latent2RGBPreviewer(SD15().latent_rgb_factors)
    return [previewer.decode_latent_to_preview(x0[i : i + 1]).tobytes() for i in frames]


def cells(sheet, size=SIZE):
    """Return the pictures of a sheet, row after row."""
    columns, rows = sheet.width // size, sheet.height // size
    boxes = [(x * size, y * size) for y in range(rows) for x in range(columns)]
    return [sheet.crop((x, y, x + size, y + size)).tobytes() for x, y in boxes]


def ksampler(model, frames=16, steps=2):
    """Sample with the core's KSampler; returns its latents."""
    import nodes as core

    (out,) = core.KSampler().sample(
        model,
        0,
        steps,
        1.0,
        "euler",
        "simple",
        host.conditioning(1),
        host.conditioning(2),
        latent(frames),
    )
    return [out["samples"]]


def custom(model, frames=16, steps=2):
    """Sample with the core's SamplerCustom; returns its latents and denoised latents."""
    from comfy_extras import nodes_custom_sampler as core

    (euler,) = outputs(core.KSamplerSelect, "euler")
    out = outputs(
        core.SamplerCustom,
        model,
        True,
        0,
        1.0,
        host.conditioning(1),
        host.conditioning(2),
        euler,
        GRAPH.core_sigmas(model, steps),
        latent(frames),
    )
    return [part["samples"] for part in out]


def advanced(model, frames=16, steps=2):
    """Sample with the core's SamplerCustomAdvanced; returns its latents and denoised latents."""
    from comfy_extras import nodes_custom_sampler as core

    (guider,) = outputs(core.BasicGuider, model, host.conditioning(1))
    (noise,), (euler,) = outputs(core.RandomNoise, 0), outputs(core.KSamplerSelect, "euler")
    values = GRAPH.core_sigmas(model, steps)
    out = outputs(core.SamplerCustomAdvanced, noise, guider, euler, values, latent(frames))
    return [part["samples"] for part in out]


def latent(frames):
    import torch

    return {"samples": torch.zeros(frames, 4, SIZE, SIZE)}


def with_windows(where):
    node = GRAPH.nodes["ADL_SlidingContext"]
    return GRAPH.apply(context=node.execute(8, 2, "static", "flat", False, 1, where).result[0])


def check_every_sampler_previews_a_sheet_and_gives_the_same_latents():
    """Frames in order, x0 as it is without, and nothing drawn where previews are off."""
    model, seen = recording(GRAPH.apply())
    for sample in (ksampler, custom, advanced):
        with previews("none") as sent:
            without = sample(model)
        assert sent == [None, None], sample
        seen.clear()
        with previews() as sent:
            out = sample(model)
        assert [cells(sheet) for sheet in sent] == [drawn(x0, SHOWN_OF_16) for x0 in seen], sample
        assert len(sent) == 2, sample
        # the second is denoised_output: what the host's callback kept of x0
        assert all(equal(a, b) for a, b in zip(out, without, strict=True)), sample
        assert all(part.shape == (16, 4, SIZE, SIZE) for part in out), sample


def check_windows_preview_the_whole_clip():
    for where in ("latents", "features"):
        model, seen = recording(with_windows(where))
        with previews() as sent:
            out = advanced(model, frames=20, steps=1)
        assert cells(sent[0]) == drawn(seen[0], [0, 2, 5, 7, 10, 12, 14, 17, 19]), where
        with previews("none"):
            without = advanced(model, frames=20, steps=1)
        assert all(equal(a, b) for a, b in zip(out, without, strict=True)), where


def check_callbacks_of_others_get_the_very_same_x0():
    model, seen = recording(GRAPH.apply())
    got = []
    with previews():
        values = GRAPH.core_sigmas(model, 1)
        host.sample(model, values, callback=lambda _i, x0, _x, _n: got.append(x0))
    assert len(got) == 1
    assert equal(got[0], seen[0])
    add_contact_sheets = host.submodule("nodes.host.preview").add_contact_sheets
    for callback in (None, print, got.append, lambda *_: None):
        assert add_contact_sheets(callback) is callback


def check_previewers_of_others_stay():
    """A pack with moving previews has a previewer of its own class in the host's callback."""
    import latent_preview

    class Moving(latent_preview.LatentPreviewer):
        pass

    def prepare(previewer):
        callback = latent_preview.prepare_callback(GRAPH.base, 1)
        at = callback.__code__.co_freevars.index("previewer")
        callback.__closure__[at].cell_contents = previewer
        return callback

    add_contact_sheets = host.submodule("nodes.host.preview").add_contact_sheets
    others = prepare(Moving())
    assert add_contact_sheets(others) is others
    hosts = prepare(latent_preview.LatentPreviewer())
    assert add_contact_sheets(hosts) is not hosts


def check_short_clips_show_what_they_have():
    model, seen = recording(GRAPH.apply())
    for frames, shown in ((1, [0]), (3, [0, 1, 2]), (5, [0, 1, 3, 4])):
        seen.clear()
        with previews() as sent:
            ksampler(model, frames, steps=1)
        assert cells(sent[0]) == drawn(seen[0], shown), frames


def check_sheets_have_no_gaps_and_suit_their_frames():
    preview = host.submodule("nodes.host.preview")
    for frames in range(1, 200):
        rows, columns = preview.choose_sheet_shape(frames)
        assert preview.choose_sheet_shape(frames, landscape=True) == (columns, rows)
        assert min(frames, 4) <= rows * columns <= min(frames, 9)
        shown = preview.choose_frames(frames, rows * columns)
        assert shown == sorted(set(shown)), shown
        assert (shown[0], shown[-1]) == (0, frames - 1)
    assert preview.choose_sheet_shape(6) == (2, 3)


def check_an_error_leaves_nothing():
    def fail(*_):
        raise RuntimeError("on purpose")

    before = host_preview_of_plain_model()
    hook = GRAPH.base.model.diffusion_model.out.register_forward_hook(fail)
    try:
        with previews():
            ksampler(GRAPH.apply(), 2)
    except RuntimeError:
        pass
    else:
        raise AssertionError("nothing failed")
    finally:
        hook.remove()
    assert host_preview_of_plain_model() == before


def host_preview_of_plain_model():
    """Return the picture of a plain run of several images: the host's, of the first."""
    model, seen = recording(GRAPH.base)
    with previews() as sent:
        ksampler(model, 4, steps=1)
    assert cells(sent[0]) == drawn(seen[0], [0])
    return sent[0].tobytes()


if __name__ == "__main__":
    main(GRAPH, globals())
