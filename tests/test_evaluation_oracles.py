"""Every deterministic metric of samples, taken as `genray evaluate` takes it, against an independent implementation.

The images enter in 1, 2 and 7 shards. Their features are their pixels, so that no network stands between
the two sides.
"""

import numpy as np
import pytest
import torch
from evaluation_snapshots import save_classifier, save_vae
from scipy.spatial.distance import pdist
from scipy.stats import mannwhitneyu
from sklearn.cluster import KMeans
from sklearn.metrics import accuracy_score
from sklearn.neighbors import NearestNeighbors
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from genray import snapshot
from genray.config import Data, Eval
from genray.data.images import ImageSet, load_images
from genray.evaluation.features import Extractor, extract
from genray.evaluation.latent import reconstructions
from genray.evaluation.memorisation import MIN_FAKES, NUM_CELLS
from genray.evaluation.samples import TAKERS, Comparison, observe, sample_scores
from genray.evaluation.scoring import score_snapshot
from genray.evaluation.training import share_right

CLASSES = ("a", "b", "c")
NUM = 280
DETERMINISTIC = [name for name in TAKERS if name not in ("cas", "cas_reverse")]  # those two train a network

PIXELS = Extractor(
    task="pixels",
    digest="p" * 64,
    resize="none",
    prepare=lambda images: images.double() / 16,
    observe=lambda prepared: prepared,
    classify=lambda prepared: prepared.flatten(1)[:, :4].softmax(1),
    device=torch.device("cpu"),
)


def image_set(split, seed, low, high, num=NUM):
    """Images of 4 x 3 pixels that share a pattern, each class with its own brightness."""
    source = torch.Generator().manual_seed(seed)
    labels = torch.arange(num) % 3
    pattern = torch.rand(1, 1, 4, 3, generator=torch.Generator().manual_seed(0)) * 60
    noise = torch.randint(low, high, (num, 1, 4, 3), generator=source)
    strength = torch.rand(num, 1, 1, 1, generator=source)
    images = (noise + strength * pattern + 20 * labels.view(-1, 1, 1, 1)).to(torch.uint8)
    return ImageSet(images, labels, CLASSES, "patterns", split, f"{split:-<64}", 0)


REALS, TRAIN = image_set("test", 1, 0, 120), image_set("train", 2, 0, 120, num=400)
FAKES = image_set("fakes", 3, 10, 110)
FAKES.images[:40] = TRAIN.images[:40]  # some are copies


def points(images):
    return images.images.flatten(1).double() / 16


def torch_fidelity_fid(a, b):
    statistics = [fid_features_to_statistics(features) for features in (a, b)]
    return fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]


def kid():
    options = {"kid_subsets": 1, "kid_subset_size": NUM, "verbose": False}
    return kid_features_to_metric(points(REALS), points(FAKES), **options)["kernel_inception_distance_mean"]


def prc(key):
    options = {"prc_neighborhood": 3, "prc_batch_size": 100, "save_cpu_ram": True, "verbose": False}
    return prc_features_to_metric(points(FAKES), points(REALS), **options)[key]


def balls(share):
    """Which fakes lie within the distance of each real to its fifth neighbour, by scikit-learn."""
    reals, fakes = points(REALS).numpy(), points(FAKES).numpy()
    reach = NearestNeighbors(n_neighbors=6).fit(reals).kneighbors(reals)[0][:, 5]
    found = NearestNeighbors().fit(fakes)
    hits = [
        len(found.radius_neighbors(real[None], np.nextafter(r, 0))[0][0]) for real, r in zip(reals, reach, strict=True)
    ]
    return share(np.array(hits))


def to_train(images):
    """Distance to the nearest training image, and its place, by scikit-learn."""
    distance, place = NearestNeighbors(n_neighbors=1).fit(points(TRAIN).numpy()).kneighbors(points(images).numpy())
    return distance[:, 0], place[:, 0]


def auth_pct():
    distance, place = to_train(FAKES)
    own = NearestNeighbors(n_neighbors=2).fit(points(TRAIN).numpy()).kneighbors(points(TRAIN).numpy())[0][:, 1]
    return 100 * np.mean(distance > own[place])


def c_t():
    cells = KMeans(NUM_CELLS, n_init=1, random_state=0).fit(points(TRAIN).numpy())
    fakes, reals = (cells.predict(points(images).numpy()) for images in (FAKES, REALS))
    total, weight = 0.0, 0
    for cell in range(NUM_CELLS):
        a, b = to_train(FAKES)[0][fakes == cell], to_train(REALS)[0][reals == cell]
        if len(a) >= MIN_FAKES and len(b):
            n, m = len(a), len(b)
            z = (mannwhitneyu(a, b).statistic - n * m / 2) / (n * m * (n + m + 1) / 12) ** 0.5
            total, weight = total + z * m, weight + m
    assert weight > 0
    return total / weight


ORACLES = {
    "fid": lambda: torch_fidelity_fid(points(REALS), points(FAKES)),
    "kid": kid,
    "precision": lambda: prc("precision"),
    "recall": lambda: prc("recall"),
    "density": lambda: balls(lambda hits: hits.sum() / (5 * NUM)),
    "coverage": lambda: balls(lambda hits: (hits > 0).mean()),
    "inception_score": lambda: isc_features_to_metric(points(FAKES)[:, :4], 10, shuffle=False)["inception_score_mean"],
    "ifid": lambda: np.mean(
        [torch_fidelity_fid(*(points(images)[images.labels == k] for images in (REALS, FAKES))) for k in range(3)]
    ),
    "diversity": lambda: pdist(points(FAKES).numpy()).mean() / pdist(points(REALS).numpy()).mean(),
    "train_distance": lambda: np.median(to_train(FAKES)[0]) / np.median(to_train(REALS)[0]),
    "auth_pct": auth_pct,
    "c_t": c_t,
}


def taken(num_shards):
    """The values by name, of fakes that come in so many shards."""
    against = Comparison(
        reals=REALS,
        extractor=PIXELS,
        settings=Eval(num_seeds=1, batch_size=64),
        load_train=lambda: TRAIN,
        cache=None,
        device="cpu",
        num_samples=NUM,
    )
    shards = FAKES.images.tensor_split(num_shards)
    fakes = observe(against, 0, lambda: iter(shards), FAKES.labels, DETERMINISTIC)
    scores = sample_scores(DETERMINISTIC, against, [fakes], num_seeds=1, labels="given")
    return {score.metric: score.value for score in scores}


@pytest.fixture(scope="module")
def values():
    return {num_shards: taken(num_shards) for num_shards in (1, 2, 7)}


def test_every_deterministic_metric_of_samples_has_an_oracle():
    assert list(ORACLES) == DETERMINISTIC


@pytest.mark.parametrize("num_shards", [1, 2, 7])
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_metric_agrees_with_an_independent_implementation(values, name, num_shards):
    expected = float(ORACLES[name]())
    assert expected != 0
    assert values[num_shards][name] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_metric_is_one_value_however_the_images_are_sharded(values, name):
    assert values[1][name] == pytest.approx(values[2][name], rel=1e-12)
    assert values[1][name] == pytest.approx(values[7][name], rel=1e-12)


def test_reconstruction_fid_agrees_with_torch_fidelity(tmp_path):
    data = Data(name="digits", cache=str(tmp_path / "data"))
    reals = load_images(data, "test").images
    directory, extractor = save_vae(tmp_path / "vae"), save_classifier(tmp_path / "extractor")
    settings = Eval(metrics=("reconstruction_fid",), num_samples=64, num_seeds=1)
    found = score_snapshot(directory, data=data, settings=settings, extractor=extractor)[-1]
    back = torch.cat(list(reconstructions(snapshot.load(directory), reals)))
    ours, theirs = (extract(snapshot.load(extractor), images).double() for images in (reals, back))
    assert found.value == pytest.approx(torch_fidelity_fid(ours, theirs), rel=1e-6)


@pytest.mark.parametrize("batch_size", [1, 7, 280])
def test_share_of_the_classification_accuracy_score_agrees_with_sklearn(tmp_path, batch_size):
    module = snapshot.load(save_classifier(tmp_path / "model")).module
    reals = load_images(Data(name="digits"), "test")
    predicted = module(reals.images[:NUM].float() / 127.5 - 1).argmax(1)
    found = share_right(module, reals.images[:NUM], reals.labels[:NUM], batch_size)
    assert found == pytest.approx(accuracy_score(reals.labels[:NUM], predicted), rel=1e-12)
