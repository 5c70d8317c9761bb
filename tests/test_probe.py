"""The miniature's probe: it knows every factor of true clips, and its features tell wrong ones."""

import pytest
import torch
from animatediff_lightning.distill.engine.loop import LoopOptions
from animatediff_lightning.distill.evaluate import frechet
from animatediff_lightning.distill.miniature import probe

COUNT = 300
# the smallest share that it must know of fresh true clips
SHARES = {"colour": 0.98, "kind": 0.88, "size": 0.98, "motion": 0.98, "style": 0.98}


def true_clips(seed, treatments=probe.UNTREATED):
    generator = torch.Generator().manual_seed(seed)
    return probe.draw_clips(probe.all_scenes(COUNT, generator), generator, treatments)


@pytest.fixture(scope="module")
def fresh():
    return true_clips(12345)


def test_it_knows_every_factor_of_true_clips(fresh):
    clips, labels = fresh
    found = probe.predict(clips)
    for name, share in SHARES.items():
        assert (found[name] == labels[name]).float().mean() >= share, name


@pytest.mark.parametrize("wrong", [(0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0)])
def test_still_and_shuffled_clips_are_further_than_other_true_ones(fresh, wrong):
    features = probe.features(fresh[0])
    floor = frechet.between(features, probe.features(true_clips(54321)[0]))
    assert frechet.between(features, probe.features(true_clips(12345, wrong)[0])) > 5 * floor


def test_noise_moves_the_features_the_more_the_stronger_it_is(fresh):
    clips, features = fresh[0], probe.features(fresh[0])
    noise = torch.randn(clips.shape, generator=torch.Generator().manual_seed(0))
    far = [frechet.between(features, probe.features(clips + s * noise)) for s in (0.05, 0.2, 0.8)]
    assert far == sorted(far)
    assert far[0] < far[2] / 5


def test_training_lowers_the_loss_and_what_is_saved_is_what_is_loaded(tmp_path):
    of_step = probe.probe_loss(untrained := probe.Probe(), seed=0)
    with torch.no_grad():
        before = of_step(5)
    trained = probe.train_probe(tmp_path / "run", options=LoopOptions(6, 3e-3, ema=0.0))
    with torch.no_grad():
        assert probe.probe_loss(trained, seed=0)(5) < before
    file = probe.save_probe(trained, tmp_path / "probe.safetensors")
    again = probe.load_probe(file).state_dict()
    assert all(torch.equal(again[k], t.half().float()) for k, t in trained.state_dict().items())
    assert sum(p.numel() for p in untrained.parameters()) < 150_000


def test_clips_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="generate 16 frames of the miniature"):
        probe.features(torch.zeros(1, 8, 3, 16, 16))
