"""Advanced-ControlNet and IPAdapter_plus with our motion and windows; one JSON line a check.

PYTHON_OF_COMFYUI tests/host/peers.py COMFYUI_FOLDER MODELS_FOLDER PEERS_FOLDER
PEERS_FOLDER holds checkouts of both; tests/test_peers.py runs this. Files are thin and random.
"""

import sys
from pathlib import Path

import controls
import host
from checking import Graph, close, main, window_by_window

GRAPH = Graph()
PEERS = Path(sys.argv.pop())
WINDOWS = (list(range(8)), list(range(6, 14)))


def windows_of(count=1):
    node = GRAPH.nodes["ADL_SlidingContext"]
    return node.execute(8, 2, "static", "flat", False, count, "latents").result[0]


def in_windows(count=1, patch=lambda model: model, **kwargs):
    """Sample 14 frames in one step, in windows of our handler."""
    model = patch(GRAPH.apply(context=windows_of(count)))
    return host.sample(model, GRAPH.sigmas(model, 1), frames=14, cfg=1.5, **kwargs)


def by_hand(patch=lambda model, _rows: model, control=lambda _rows: None):
    """Return the mean of what each window gives by itself, with what is its own."""

    def make(rows):
        model = patch(GRAPH.apply(), rows)
        return model, GRAPH.sigmas(model, 1), {"control": control(rows)}

    return window_by_window(WINDOWS, make, cfg=1.5)


def advanced(kind, images, previous=None, keyframes=None):
    """Return an Advanced-ControlNet control with hint images."""
    host.load_pack(PEERS / "ComfyUI-Advanced-ControlNet", "peer_acn")
    convert = sys.modules["peer_acn.adv_control.control"].convert_to_advanced
    plain = controls.loaded(kind)
    made = convert(plain, timestep_keyframe=keyframes) if keyframes else convert(plain)
    return made.copy().set_cond_hint(images, 1.0).set_previous_controlnet(previous)


def check_advanced_controlnet_sees_each_windows_hints():
    drawn = controls.hints(14)
    wanted = by_hand(control=lambda rows: controls.control("controlnet", drawn[rows]))
    assert close(by_hand(), wanted) > 1e-3, "the control did nothing"
    for count in (1, 2):
        clip = in_windows(count, control=advanced("controlnet", drawn))
        assert close(clip, wanted) < 1e-5, (count, close(clip, wanted))


def check_advanced_controlnet_over_a_core_one():
    """The core's one in the chain is sliced too, and the chain is as it was afterwards."""
    drawn, other = controls.hints(14), controls.hints(14, seed=1)

    def core(rows):
        return controls.control("other_controlnet", other[rows])

    wanted = by_hand(
        control=lambda rows: controls.control("controlnet", drawn[rows], previous=core(rows))
    )
    previous = core(list(range(14)))
    chain = advanced("controlnet", drawn, previous=previous)
    clip = in_windows(control=chain)
    assert close(clip, wanted) < 1e-5, close(clip, wanted)
    assert chain.previous_controlnet is previous


def check_latent_keyframes_reach_their_frames():
    """They look frames up by number: several windows a call would blank those that repeat."""
    host.load_pack(PEERS / "ComfyUI-Advanced-ControlNet", "peer_acn")
    utils = sys.modules["peer_acn.adv_control.utils"]
    latents = utils.LatentKeyframeGroup()
    for frame in range(14):
        latents.add(utils.LatentKeyframe(frame, 1.0))
    group = utils.TimestepKeyframeGroup()
    group.add(utils.TimestepKeyframe(start_percent=0.0, latent_keyframes=latents))
    drawn = controls.hints(14)
    everywhere = in_windows(control=advanced("controlnet", drawn))
    keyed = in_windows(2, control=advanced("controlnet", drawn, keyframes=group))
    assert close(keyed, everywhere) < 1e-5, close(keyed, everywhere)


def ip_adapter_file():
    """Return random weights in the layout of an SD1.5 IP-Adapter, as wide as the thin UNet."""
    import torch

    torch.manual_seed(0)
    keys = [f"{2 * n + 1}.to_{part}_ip.weight" for n in range(16) for part in "kv"]
    return {
        "image_proj": {
            "proj.weight": torch.randn(4 * 768, 64) / 8,
            "proj.bias": torch.zeros(4 * 768),
            "norm.weight": torch.ones(768),
            "norm.bias": torch.zeros(768),
        },
        "ip_adapter": {key: torch.randn(320, 768) / 768**0.5 for key in keys},
    }


def check_ipadapter_sees_each_windows_images():
    """An image a frame (by the Batch node): each window gets those of its own frames."""
    import torch

    host.load_pack(PEERS / "ComfyUI_IPAdapter_plus", "peer_ipadapter")
    node = sys.modules["peer_ipadapter"].NODE_CLASS_MAPPINGS["IPAdapterEmbedsBatch"]
    weights, images = ip_adapter_file(), torch.randn(14, 64)

    def patch(model, rows):
        args = (weights, images[rows], 1.0, "linear", 0.0, 1.0)
        return node().apply_ipadapter(model, *args, clip_vision=object())[0]

    wanted = by_hand(patch)
    assert close(by_hand(), wanted) > 1e-3, "the adapter did nothing"
    first_images = by_hand(lambda model, _rows: patch(model, WINDOWS[0]))
    assert close(first_images, wanted) > 1e-4
    for count in (1, 2):
        clip = in_windows(count, lambda model: patch(model, list(range(14))))
        assert close(clip, wanted) < 1e-5, (count, close(clip, wanted))


if __name__ == "__main__":
    main(GRAPH, globals())
