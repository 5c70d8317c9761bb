"""The split of the miniature's captions and base models, and that nothing trains beyond it."""

import itertools

import pytest
import torch
from animatediff_lightning.distill.miniature import metrics, split, styles, world
from animatediff_lightning.distill.train import config as train_config
from animatediff_lightning.distill.train.config import BUNDLED

OF_THE_MINIATURE = sorted(f.stem for f in BUNDLED.glob("*.toml") if "miniature:" in f.read_text())


def test_the_parts_are_disjoint_and_make_up_the_world():
    bases = list(itertools.chain.from_iterable(split.BASES.values()))
    assert sorted(bases) == sorted(styles.STYLES)
    combinations = [c for part in split.BASES for c in split.combinations(part)]
    assert len(combinations) == len(set(combinations)) == 6 * 3 * 2 * 4
    said = [split.captions(part) for part in split.BASES]
    assert not any(a & b for a, b in itertools.combinations(said, 2))


def test_every_pair_of_words_is_trained():
    """Or a student could not be blamed for what it has never seen."""
    trained = split.combinations("train")
    for one, other in itertools.combinations(range(4), 2):
        tables = (world.COLOURS, world.KINDS, world.SIZES, world.DIRECTIONS)
        wanted = set(itertools.product(range(len(tables[one])), range(len(tables[other]))))
        assert {(c[one], c[other]) for c in trained} == wanted


@pytest.mark.parametrize("name", OF_THE_MINIATURE)
def test_a_config_trains_on_no_base_and_shows_no_caption_of_the_test(name):
    config = train_config.read_config(train_config.find_config(name))
    bases = {base.partition(":")[2] for base in config.bases}
    assert bases <= set(split.BASES["train"])
    assert not set(config.sheet_prompts) & split.captions("test")


def test_there_are_configs_to_hold():
    assert "miniature" in OF_THE_MINIATURE


@pytest.mark.parametrize("part", ["validation", "test"])
def test_scenes_to_measure_on_are_of_their_part(part):
    assert set(metrics.held_out_scenes(120, part).captions()) == split.captions(part)


def test_a_scene_is_read_from_its_caption():
    captions = sorted(split.captions("test"))
    scenes = world.scenes_of(captions, torch.Generator().manual_seed(0))
    assert scenes.captions() == captions
    assert not world.tells_scene("a red fish")
