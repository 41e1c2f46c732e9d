"""What can be measured of a snapshot, by name, and which way is better."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from genray.errors import ConfigError, unknown

Product = Literal["generator", "vae", "tokenizer", "classifier"]


@dataclass(frozen=True)
class Metric:
    """How to read the values of one metric, and what has it."""

    direction: Literal["max", "min"]
    unit: str
    summary: str
    """What it says, in a line, with its paper."""
    products: tuple[Product, ...]
    default: bool = False
    """Whether it is taken when `eval.metrics` names none."""
    by_class: bool = False
    """Whether it needs fakes that were made for a class."""


ALL = "all"
"""Stands in `eval.metrics` for every metric that the model can have."""


_SAMPLES: tuple[Product, ...] = ("generator", "vae")
_ALL: tuple[Product, ...] = ("generator", "vae", "classifier")
_VAE: tuple[Product, ...] = ("vae",)
_TOKENIZER: tuple[Product, ...] = ("tokenizer",)
_CLASSIFIER: tuple[Product, ...] = ("classifier",)

METRICS: dict[str, Metric] = {
    "fid": Metric(
        "min", "", "Fréchet distance of features, fakes to reals (Heusel et al. 2017, 1706.08500)", _SAMPLES, True
    ),
    "kid": Metric(
        "min", "", "unbiased squared kernel MMD of features (Bińkowski et al. 2018, 1801.01401)", _SAMPLES, True
    ),
    "precision": Metric(
        "max",
        "",
        "share of fakes among the reals (Kynkäänniemi et al. 2019, 1904.06991); "
        "of a classifier: right share of what it calls a class, mean over classes",
        _ALL,
        True,
    ),
    "recall": Metric(
        "max",
        "",
        "share of reals among the fakes (Kynkäänniemi et al. 2019, 1904.06991); "
        "of a classifier: share of images named right, mean over the classes that occur",
        _ALL,
        True,
    ),
    "density": Metric("max", "", "how densely reals lie around fakes (Naeem et al. 2020, 2002.09797)", _SAMPLES, True),
    "coverage": Metric("max", "", "share of reals with a fake nearby (Naeem et al. 2020, 2002.09797)", _SAMPLES, True),
    "inception_score": Metric(
        "max", "", "exp of the KL of classes given the image to classes (Salimans et al. 2016, 1606.03498)", _SAMPLES
    ),
    "ifid": Metric(
        "min", "", "FID within each class, mean over classes (Miyato and Koyama 2018)", _SAMPLES, by_class=True
    ),
    "diversity": Metric(
        "max", "", "mean distance of two fakes over that of two reals; LPIPS-like (Zhang et al. 2018)", _SAMPLES
    ),
    "train_distance": Metric(
        "max",
        "",
        "median distance to the nearest training image, over that of unseen reals; far below 1: copies",
        _SAMPLES,
    ),
    "auth_pct": Metric(
        "max", "%", "fakes that are no copies of a training image (Alaa et al. 2022, 2102.08921)", _SAMPLES
    ),
    "c_t": Metric(
        "max",
        "",
        "z of distances to the training set, fakes to unseen reals; negative: copies (Meehan et al. 2020)",
        _SAMPLES,
    ),
    "cas": Metric(
        "max",
        "",
        "accuracy on reals of a classifier trained on fakes (Ravuri and Vinyals 2019, 1905.10887)",
        _SAMPLES,
        by_class=True,
    ),
    "cas_reverse": Metric(
        "max",
        "",
        "accuracy on fakes of a classifier trained on reals (Shmelkov et al. 2018, 1807.09499)",
        _SAMPLES,
        by_class=True,
    ),
    "elbo": Metric(
        "max", "nats", "lower bound of log p(image), mean per image (Kingma and Welling 2013, 1312.6114)", _VAE, True
    ),
    "recon_nll": Metric("min", "nats", "the bound's first part: -log p(image | z), mean per image", _VAE),
    "kl": Metric("min", "nats", "the bound's second part: posterior to prior, mean per image", _VAE),
    "nll": Metric(
        "min", "nats", "-log p(image) by importance samples, mean per image (Burda et al. 2016, 1509.00519)", _VAE
    ),
    "bits_per_dim": Metric("min", "bits", "the bound per number of an image; gaussian: of 256 levels", _VAE),
    "active_units": Metric("max", "", "latent dimensions that are used (Burda et al. 2016, 1509.00519)", _VAE),
    "reconstruction_fid": Metric(
        "min", "", "Fréchet distance of features, reconstructions to reals", _VAE + _TOKENIZER
    ),
    "psnr": Metric("max", "dB", "peak signal to noise of reconstructions, of the mean error of all images", _TOKENIZER),
    "accuracy": Metric("max", "", "share of images whose class is named right", _CLASSIFIER, True),
    "top_k_accuracy": Metric("max", "", "share of images whose class is among the k likeliest", _CLASSIFIER),
    "f1": Metric(
        "max", "", "harmonic mean of precision and recall of a class, mean over the classes that occur", _CLASSIFIER
    ),
    "calibration_error": Metric(
        "min", "", "mean gap of confidence and accuracy (Guo et al. 2017, 1706.04599)", _CLASSIFIER
    ),
}
"""By the name that scores, metric keys (`eval/NAME`) and protocols carry."""


def metrics_of(product: str, classifies: bool = False) -> list[str]:
    """Names of the metrics of `product`; beside a classifier it has those, too, that only classifiers have."""
    return [
        name
        for name, metric in METRICS.items()
        if product in metric.products or (classifies and metric.products == _CLASSIFIER)
    ]


def check_names(
    names: Sequence[str], product: str | None = None, *, classifies: bool = False, field: str = "eval.metrics"
) -> None:
    """Raises ConfigError unless all are metrics, and of `product` where that is given, or `all`; names the nearest."""
    having = list(METRICS) if product is None else metrics_of(product, classifies)
    for name in names:
        if name not in (*having, ALL):
            kind = "metric" if product is None or name not in METRICS else f"metric of a {product}"
            raise ConfigError(f"{field}: {unknown(kind, name, having)}")


def every(product: str, *, by_class: bool, features: bool, classifies: bool = False) -> tuple[str, ...]:
    """What `all` stands for: each metric of `product` that it can have, in the order of `METRICS`.

    Args:
        product: generator, vae, tokenizer or classifier.
        by_class: whether its fakes are made for a class.
        features: whether there is an extractor.
        classifies: whether a classifier was trained beside it.
    """
    return tuple(
        name
        for name in metrics_of(product, classifies)
        if (by_class or not METRICS[name].by_class) and (features or not needs_extractor(name, product))
    )


def chosen(names: Sequence[str], product: str, classifies: bool = False) -> tuple[str, ...]:
    """The metrics to take of `product`: the first of its own, which decides on promotion, then `names`.

    No names: its default ones.

    Raises:
        ConfigError: the product has no such metric.
    """
    check_names(names, product, classifies=classifies)
    own = metrics_of(product, classifies)
    if product == "classifier":
        own.sort(key=lambda name: name != "accuracy")
    wanted = names or [name for name in own if METRICS[name].default or product == "tokenizer"]
    return tuple(dict.fromkeys((own[0], *wanted)))


def needs_extractor(name: str, product: str) -> bool:
    """Whether the metric compares features of images."""
    return product != "classifier" and ("generator" in METRICS[name].products or name == "reconstruction_fid")
