"""From a snapshot, or a set of images, to its scores."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from genray import snapshot as snapshots
from genray.config import Data, Eval
from genray.data.images import ImageSet, load_images
from genray.errors import ProtocolError, StorageError
from genray.evaluation import ALL, chosen, every, extractors, metrics_of, needs_extractor
from genray.evaluation.classifier_scores import classifier_scores
from genray.evaluation.features import Extractor, check_shape
from genray.evaluation.likelihood import has_likelihood
from genray.evaluation.protocol import Score
from genray.evaluation.samples import TAKERS, Comparison, observe, sample_scores
from genray.evaluation.vae_scores import LIKELIHOOD, likelihood_scores, psnr_score, reconstruction_score
from genray.manifest import written_whole
from genray.sampling import generate, latents
from genray.snapshot import Snapshot
from genray.streams import generator

FORMAT = 1
WITHOUT_EXTRACTOR = {"vae": "elbo", "tokenizer": "psnr"}
"""What decides on promotion of a product where there is no extractor."""


def score_snapshot(
    directory: Path, *, data: Data, settings: Eval, extractor: Path | None, cache: Path | None = None
) -> list[Score]:
    """Every score of the snapshot at `directory`, the one that decides on promotion first.

    That one is `accuracy` of a classifier, `fid` of a generator or VAE, `reconstruction_fid` of a tokenizer, without
    an extractor `elbo` or `psnr`, and is taken in any case; then come `settings.metrics`, or else the product's default
    ones. On CUDA when `settings.num_gpus` is above 0 and there is one, otherwise on the CPU.

    Args:
        directory: a snapshot.
        data: the reference images, read from files that are there; its split `train` for metrics of copying.
        settings: the protocol; its `extractor` is a name, and not read here.
        extractor: snapshot of a classifier of the same image shape, or a folder that `extractors.bring`
            made; not used for classifiers.
        cache: folder in which the features of the reference are kept between calls.

    Raises:
        ConfigError: a metric is not one of this product.
        ProtocolError: snapshot, data and extractor do not go together, a metric has too few images, or
            a generator has no extractor.
        CheckpointError: a snapshot is damaged.
        DivergenceError: the model gives non-finite pixels or logits.
    """
    device = _device(settings)
    model = _load(directory, device)
    reals = load_images(data, settings.split)
    check_shape("model", model, reals.images)
    names = _names(model, settings, extractor)
    if model.product == "classifier":
        _check_classes(model, reals)
        return classifier_scores(names, model, reals, settings)
    found: dict[str, Score] = {}
    if model.classifier is not None:
        _check_classes(model, reals)
        of_classifier = [name for name in names if name in metrics_of("classifier") and name not in TAKERS]
        found |= {score.metric: score for score in _classifier_beside(of_classifier, model, reals, settings)}
    if extractor is not None:
        if _num_labels(model) > 0:
            _check_classes(model, reals)
        against = Comparison(
            reals=reals,
            extractor=load_extractor(extractor, device),
            settings=settings,
            load_train=lambda: load_images(data, "train"),
            cache=cache,
            device=device,
            num_samples=settings.num_samples,
        )
        if of_samples := [name for name in names if name in TAKERS]:
            found |= _model_scores(of_samples, model, against)
        if "reconstruction_fid" in names:
            found["reconstruction_fid"] = reconstruction_score(model, against)
    if of_likelihood := [name for name in names if name in LIKELIHOOD]:
        found |= likelihood_scores(of_likelihood, model, reals, settings)
    if "psnr" in names:
        found["psnr"] = psnr_score(model, reals, settings)
    return [found[name] for name in names]


def reference_cache(data: Data) -> Path:
    """Folder of the features of real images, kept between scores."""
    return Path(data.cache).expanduser() / "references"


def score_images(
    images: ImageSet, *, data: Data, settings: Eval, extractor: Path, cache: Path | None = None
) -> list[Score]:
    """Scores of images that anything made, `fid` first, then as for the snapshot of a generator.

    All of them are one set of fakes: the number of images is the protocol's, and it has one seed, so
    the spread of most metrics is 0: unknown.

    Args:
        images: with classes where a metric compares class by class; their names are then the reals'.
        data: the reference images.
        settings: the protocol; number of samples, seeds and truncation are not read.
        extractor: snapshot of a classifier of the same image shape, or a folder that `extractors.bring` made.
        cache: folder in which the features of the reference are kept between calls.

    Raises:
        ConfigError: a metric is not one of images.
        ProtocolError: images, data and extractor do not go together, or a metric has too few images.
    """
    device = _device(settings)
    reals = load_images(data, settings.split)
    if images.images.shape[1:] != reals.images.shape[1:]:
        raise ProtocolError(
            f"images of {images.name!r} are {tuple(images.images.shape[1:])}, those of {reals.name!r} "
            f"{tuple(reals.images.shape[1:])} (C, H, W); give images of that size, or set --image-size"
        )
    labels = _renumbered(images, reals)
    if ALL in settings.metrics:
        settings = replace(settings, metrics=every("generator", by_class=labels is not None, features=True))
    names = chosen(settings.metrics, "generator")
    against = Comparison(
        reals=reals,
        extractor=load_extractor(extractor, device),
        settings=replace(settings, num_samples=max(2, len(images)), num_seeds=1, truncation=1.0, seed=0),
        load_train=lambda: load_images(data, "train"),
        cache=cache,
        device=device,
        num_samples=len(images),
    )
    batch = settings.batch_size
    fakes = observe(against, 0, lambda: iter(torch.split(images.images, batch)), labels, names)
    return sample_scores(names, against, [fakes], num_seeds=1, labels="given")


def load_extractor(directory: Path, device: str = "cpu") -> Snapshot | Extractor:
    """The extractor at `directory`: a classifier's snapshot, or what `extractors.bring` made.

    Raises:
        CheckpointError: it is neither, or damaged.
    """
    return extractors.load(directory, device) if extractors.is_brought(directory) else _load(directory, device)


def reference_labels(reals: ImageSet, num: int, seed: int) -> Tensor:
    """Classes for `num` fakes, drawn with the frequencies that they have among the reals: (num,), int64."""
    frequencies = torch.bincount(reals.labels, minlength=len(reals.classes)).double()
    source = generator(seed, "evaluation/labels")
    return torch.multinomial(frequencies, num, replacement=True, generator=source)


def write_scores(path: Path, scores: Sequence[Score]) -> None:
    """Writes the scores as JSON, in their order; a reader sees the old file or the whole new one."""
    text = json.dumps({"format": FORMAT, "scores": [score.to_dict() for score in scores]}, indent=2, allow_nan=False)
    with written_whole(path) as beside:
        beside.write_text(text + "\n")


def read_scores(path: Path) -> list[Score]:
    """The scores that `write_scores` put at `path`, in their order.

    Raises:
        StorageError: the file cannot be read.
        ProtocolError: it holds something else, or scores of another format.
    """
    try:
        values = json.loads(path.read_text())
        if values["format"] != FORMAT:
            raise ProtocolError(f"format is {values['format']!r}, this genray reads {FORMAT}")
        return [Score.from_dict(score) for score in values["scores"]]
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error}; score the snapshot first") from error
    except (ProtocolError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ProtocolError(f"{path} holds no scores ({error}); delete it and score the snapshot again") from error


def logged(scores: Sequence[Score]) -> dict[str, float]:
    """The scores as metrics of the journal."""
    return {f"eval/{s.metric}": s.value for s in scores} | {f"eval/{s.metric}_spread": s.spread for s in scores}


def _names(model: Snapshot, settings: Eval, extractor: Path | None) -> tuple[str, ...]:
    """The metrics to take; without an extractor a VAE has those of its likelihood."""
    if ALL in settings.metrics:
        by_class = model.product != "classifier" and _num_labels(model) > 0
        metrics = every(
            model.product, by_class=by_class, features=extractor is not None, classifies=model.classifier is not None
        )
        metrics = tuple(name for name in metrics if has_likelihood(model) or name not in LIKELIHOOD)
        settings = replace(settings, metrics=metrics)
    names = chosen(settings.metrics, model.product, model.classifier is not None)
    if not settings.metrics and not has_likelihood(model):
        names = tuple(name for name in names if name not in LIKELIHOOD)
    if extractor is not None or model.product == "classifier":
        return names
    missing = [name for name in settings.metrics or names[:1] if needs_extractor(name, model.product)]
    alone = tuple(name for name in names if not needs_extractor(name, model.product))
    if model.product in WITHOUT_EXTRACTOR and alone and not settings.metrics:
        return alone
    if missing or model.product not in WITHOUT_EXTRACTOR:
        raise ProtocolError(
            f"{[*missing, names[0]][0]} of {model.task!r} needs an extractor, and none was given; "
            f"train {model.config.data.name}-classifier and set eval.extractor to its snapshot"
        )
    return tuple(dict.fromkeys((WITHOUT_EXTRACTOR[model.product], *settings.metrics)))


def _model_scores(names: Sequence[str], model: Snapshot, against: Comparison) -> dict[str, Score]:
    """Scores of what a model draws from each seed."""
    settings, reals = against.settings, against.reals
    seeds = range(settings.seed, settings.seed + settings.num_seeds)
    conditional = _num_labels(model) > 0

    def fakes_of(seed: int) -> Iterator[Tensor]:
        return _fakes(model, reals, settings, seed)

    fakes = (
        observe(
            against,
            seed,
            lambda seed=seed: fakes_of(seed),  # type: ignore[misc]
            reference_labels(reals, settings.num_samples, seed) if conditional else None,
            names,
        )
        for seed in seeds
    )
    scores = sample_scores(names, against, fakes, num_seeds=settings.num_seeds, labels="reference")
    return {score.metric: score for score in scores}


def _classifier_beside(names: Sequence[str], model: Snapshot, reals: ImageSet, settings: Eval) -> list[Score]:
    """Scores of the classifier that was trained beside a model; its weights are no moving average."""
    scores = classifier_scores(names, snapshots.as_classifier(model), reals, settings)
    return [replace(score, protocol=replace(score.protocol, ema=False)) for score in scores]


def _fakes(model: Snapshot, reals: ImageSet, settings: Eval, seed: int) -> Iterator[Tensor]:
    """`settings.num_samples` images, in batches."""
    z = latents(settings.num_samples, int(model.module.latent_dim), seed)  # type: ignore[arg-type]
    labels = reference_labels(reals, settings.num_samples, seed) if _num_labels(model) else None
    for start in range(0, len(z), settings.batch_size):
        part = slice(start, start + settings.batch_size)
        own = None if labels is None else labels[part]
        yield generate(model.module, z[part], own, settings.batch_size, truncation=settings.truncation)


def _renumbered(images: ImageSet, reals: ImageSet) -> Tensor | None:
    """Labels of images by the places of their classes among the reals'; None where they have other classes."""
    if not images.classes or not set(images.classes) <= set(reals.classes):
        return None
    return torch.tensor([reals.classes.index(name) for name in images.classes])[images.labels]


def _device(settings: Eval) -> str:
    return "cuda" if settings.num_gpus > 0 and torch.cuda.is_available() else "cpu"


def _load(directory: Path, device: str) -> Snapshot:
    model = snapshots.load(directory)
    model.module.to(device)
    return model


def _num_labels(model: Snapshot) -> int:
    return int(model.module.num_labels)  # type: ignore[arg-type]


def _check_classes(model: Snapshot, reals: ImageSet) -> None:
    if model.classes != reals.classes:
        raise ProtocolError(
            f"model {model.task!r} knows the classes {', '.join(model.classes)}; the {reals.split} split of "
            f"{reals.name!r} has {', '.join(reals.classes)}; score with the data that it was trained on"
        )
