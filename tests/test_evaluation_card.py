"""The score card: which metrics it has, what its table says, and whose neighbours its picture shows."""

import json

import numpy as np
import pytest
import torch
from evaluation_snapshots import save_classifier
from PIL import Image

from genray import snapshot
from genray.config import Data
from genray.data.images import load_images
from genray.errors import ProtocolError
from genray.evaluation import METRICS, card, every
from genray.evaluation.distances import nearest
from genray.evaluation.features import extract
from genray.evaluation.protocol import Protocol, Score
from genray.sampling import PADDING

TILE = 32 + PADDING


@pytest.fixture(scope="module")
def train():
    return load_images(Data(name="digits"), "train")


@pytest.fixture(scope="module")
def extractor(tmp_path_factory):
    return snapshot.load(save_classifier(tmp_path_factory.mktemp("card") / "extractor"))


def tile(picture, row, column):
    """The 8 x 8 image there, grey; column 0 is the sample."""
    left = PADDING + column * TILE + (card.GAP + PADDING if column else 0)
    return picture[PADDING + row * TILE :, left:][: TILE - PADDING : 4, : TILE - PADDING : 4, 0]


def test_picture_shows_each_sample_and_its_neighbours_from_near_to_far(train, extractor):
    samples = load_images(Data(name="digits"), "test").images[:3]
    picture = card.nearest_training_images(samples, train, extractor, 64, None)
    _, places = nearest(extract(extractor, samples), extract(extractor, train.images), card.NUM_NEIGHBOURS)
    for row in range(3):
        shown = [tile(picture, row, column) for column in range(1 + card.NUM_NEIGHBOURS)]
        expected = [samples[row, 0], *(train.images[place, 0] for place in places[row])]
        assert all(np.array_equal(a, b.numpy()) for a, b in zip(shown, expected, strict=True))


def test_copy_stands_beside_what_it_was_copied_from(train, extractor):
    picture = card.nearest_training_images(train.images[7:8], train, extractor, 64, None)
    assert np.array_equal(tile(picture, 0, 0), tile(picture, 0, 1))


def test_picture_of_a_training_set_smaller_than_a_row_is_refused(train, extractor):
    few = type(train)(train.images[:8], train.labels[:8], train.classes, "digits", "train", "a" * 64, 0)
    with pytest.raises(ProtocolError, match="the 9 nearest of 8 images are not defined"):
        card.nearest_training_images(train.images[:1], few, extractor, 64, None)


def test_images_spread_over_a_folder_are_its_first_and_last_and_those_between():
    images = torch.arange(91, dtype=torch.uint8).view(-1, 1, 1, 1)
    assert card.spread_over(images).flatten().tolist() == list(range(0, 91, 10))
    assert card.spread_over(images[:4]).flatten().tolist() == [0, 1, 2, 3]


def protocol(metric, **fields):
    common = {"data": "digits", "split": "test", "data_digest": "d" * 64, "num_samples": 2000, "num_seeds": 3}
    return Protocol(metric=metric, **(common | fields))


def test_table_has_a_row_a_metric_and_each_protocol_once():
    features = {"extractor": "digits-classifier", "extractor_digest": "e" * 64, "labels": "reference"}
    scores = [
        Score("fid", 12.3456789, 0.0512, protocol("fid", **features)),
        Score("auth_pct", 71.0, 0.4, protocol("auth_pct", extra={"train_digest": "t" * 64}, **features)),
        Score("elbo", -23.75, 0.1, protocol("elbo")),
    ]
    lines = card.table(scores).splitlines()
    assert lines[2] == f"| fid | 12.35 | 0.051 | lower | {METRICS['fid'].summary} |"
    assert lines[3].startswith("| auth_pct | 71 % | 0.4 | higher |")
    assert lines[6:] == [
        "- fid, auth_pct (train_digest tttttttttttt): digits test dddddddddddd; 2,000 images for each of 3 seeds from "
        "0; features of digits-classifier eeeeeeeeeeee; labels reference",
        "- elbo: digits test dddddddddddd; 2,000 images for each of 3 seeds from 0",
    ]


def test_precision_means_another_thing_of_a_classifier():
    of_classifier, of_samples = (
        card.table([Score("precision", 0.5, 0.0, protocol("precision", labels=labels))]) for labels in ("none", "given")
    )
    assert "| share of fakes among the reals (Kynkäänniemi et al. 2019, 1904.06991) |" in of_samples
    assert "| right share of what it calls a class, mean over classes |" in of_classifier


@pytest.mark.parametrize("metric", METRICS)
def test_table_has_five_cells_a_metric(metric):
    row = card.table([Score(metric, 0.5, 0.0, protocol(metric))]).splitlines()[2]
    assert len(row.replace(r"\|", "").split("|")) == 7


def test_card_is_three_files_that_go_together(tmp_path):
    scores = [Score("fid", 1.0, 0.1, protocol("fid"))]
    written = card.write(tmp_path / "card", "m/1", scores, [card.nearest_picture(np.zeros((4, 6, 3), np.uint8))])
    assert [path.name for path in written] == ["scores.json", "card.md", "nearest.png"]
    text = written[1].read_text()
    assert text.startswith("# m/1\n\n| metric |") and "(nearest.png)" in text
    assert json.loads(written[0].read_text())["scores"][0]["value"] == 1.0
    with Image.open(written[2]) as picture:
        assert picture.size == (6, 4)


def test_every_metric_is_on_the_card_of_what_has_it():
    conditional = every("generator", by_class=True, features=True)
    assert set(conditional) - set(every("generator", by_class=False, features=True)) == {"ifid", "cas", "cas_reverse"}
    products = ("generator", "vae", "tokenizer", "classifier")
    assert {name for product in products for name in every(product, by_class=True, features=True)} == set(METRICS)
    assert every("vae", by_class=False, features=False) == (
        "elbo",
        "recon_nll",
        "kl",
        "nll",
        "bits_per_dim",
        "active_units",
    )
    assert every("generator", by_class=True, features=False) == ()
