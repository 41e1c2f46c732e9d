"""Models by name, and the contest for the champion: fetch, score again, promote."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from genray import mlflow_promotion, mlflow_registry, snapshot
from genray.config import Data, Eval
from genray.data.images import load_images
from genray.errors import CheckpointError, ProtocolError, RegistryError
from genray.evaluation import card, classifier_pictures, extractors
from genray.evaluation.card import Picture
from genray.evaluation.folder import load_folder
from genray.evaluation.protocol import Protocol, Score
from genray.evaluation.scoring import load_extractor, reference_cache, score_images, score_snapshot
from genray.mlflow_promotion import Decision
from genray.mlflow_store import connect, reporting
from genray.paths import is_path
from genray.sampling import sample

CHAMPION = "champion"


def fetch(model: str, uri: str, to: Path) -> Path:
    """A verified copy at `to` of the snapshot that `model` names: a folder, NAME@ALIAS or NAME/VERSION.

    Or of an extractor: KIND:PATH of a weights' file, or a folder that `extractors.bring` made.

    Raises:
        ConfigError: KIND:PATH with an unknown kind, or no such file.
        RegistryError: the registry has no such model, or an unsafe one.
        CheckpointError: the folder is no snapshot, or damaged.
    """
    if extractors.parse(model):
        return extractors.bring(model, to)
    if not is_path(model):
        return mlflow_registry.pull(uri, model, to)
    load_extractor(Path(model).expanduser())
    if to.exists():
        shutil.rmtree(to)
    shutil.copytree(Path(model).expanduser(), to)
    return to


@contextmanager
def local_snapshot(model: str, uri: str) -> Iterator[Path]:
    """The snapshot that `model` names, in a folder that is there for the length of the block."""
    with tempfile.TemporaryDirectory(prefix="genray-") as folder:
        yield fetch(model, uri, Path(folder) / "snapshot")


def evaluate(model: Path, uri: str, data: Data, settings: Eval) -> list[Score]:
    """Scores of a snapshot, with the extractor that `settings` names or else the champion classifier of the data.

    Raises:
        RegistryError: a generator has no extractor to be scored with.
    """
    with extractor_for(model, uri, data, settings) as extractor:
        return score_snapshot(model, data=data, settings=settings, extractor=extractor, cache=reference_cache(data))


def pictures(model: Path, uri: str, data: Data, settings: Eval) -> list[Picture]:
    """Of a classifier its confusions and mistakes; of others samples beside their nearest training images.

    The latter need an extractor: without one there is no picture.
    """
    made = snapshot.load(model)
    if made.product == "classifier":
        return classifier_pictures.pictures(made, load_images(data, settings.split), settings.batch_size)
    with extractor_for(model, uri, data, settings) as extractor:
        if extractor is None or made.product == "tokenizer":
            return []
        samples = sample(made, card.NUM_SAMPLES, settings.seed, truncation=settings.truncation)
        return [_nearest(samples, extractor, data, settings)]


def pictures_of_folder(folder: Path, uri: str, data: Data, settings: Eval) -> list[Picture]:
    """Images of a folder that anything made beside their nearest training images."""
    samples = card.spread_over(load_folder(folder, data.image_shape[0]).images)
    return [nearest(samples, uri, data, settings)]


def nearest(samples: Tensor, uri: str, data: Data, settings: Eval) -> Picture:
    """Samples, uint8 (N, C, H, W), beside their nearest training images.

    Raises:
        RegistryError: there is no extractor.
    """
    with local_snapshot(_extractor_name(data, settings), uri) as extractor:
        return _nearest(samples, extractor, data, settings)


def evaluate_folder(folder: Path, uri: str, data: Data, settings: Eval) -> list[Score]:
    """Scores of a folder of images that anything made, against the split of `data` that `settings` names.

    Raises:
        DataError: no images, images of several sizes, or one that does not decode.
        ProtocolError: images of another size than the data's, or too few.
        RegistryError: there is no extractor.
    """
    images = load_folder(folder, data.image_shape[0])
    with local_snapshot(_extractor_name(data, settings), uri) as extractor:
        return score_images(images, data=data, settings=settings, extractor=extractor, cache=reference_cache(data))


def promote(uri: str, reference: str, data: Data, settings: Eval, extractor: Path | None) -> Decision:
    """Scores a version and the champion of its name again, and makes it champion if it is better.

    Both are scored under the champion's protocol, as far as settings can follow it; the first
    champion is scored under `settings`.

    Raises:
        ProtocolError: the champion's protocol cannot be followed, e.g. its reference images are others.
    """
    name = reference.partition("@")[0].partition("/")[0]
    protocol = mlflow_promotion.champion_protocol(uri, name)
    if protocol is not None:
        settings = following(settings, protocol)
    settings = replace(settings, metrics=())  # only the first decides; costly ones were taken with the snapshot
    with _same_extractor(uri, protocol, extractor) as own:

        def score(directory: Path) -> Score:
            scores = score_snapshot(directory, data=data, settings=settings, extractor=own, cache=reference_cache(data))
            wanted = protocol.metric if protocol else scores[0].metric
            for found in scores:
                if found.metric == wanted:
                    return found
            raise ProtocolError(
                f"the champion of {name} was chosen by {wanted}, and {reference} has only "
                f"{', '.join(s.metric for s in scores)}; it cannot compete"
            )

        return mlflow_promotion.promote(uri, reference, score=score)


def following(settings: Eval, protocol: Protocol) -> Eval:
    """`settings` with everything that `protocol` fixes."""
    fixed = replace(settings, split=protocol.split, seed=protocol.seed, truncation=protocol.truncation)
    if protocol.extractor == "none":
        return fixed
    return replace(fixed, num_samples=protocol.num_samples, num_seeds=protocol.num_seeds)


@contextmanager
def extractor_for(model: Path, uri: str, data: Data, settings: Eval) -> Iterator[Path | None]:
    """The classifier to score the snapshot `model` with; None: it needs none, or none is there for an autoencoder."""
    product = snapshot.load(model).product
    if product == "classifier":
        yield None
        return
    try:
        with local_snapshot(_extractor_name(data, settings), uri) as extractor:
            yield extractor
    except RegistryError:
        if settings.extractor or product not in ("vae", "tokenizer"):
            raise
        yield None


def _nearest(samples: Tensor, extractor: Path, data: Data, settings: Eval) -> Picture:
    train, network = load_images(data, "train"), load_extractor(extractor)
    pixels = card.nearest_training_images(samples, train, network, settings.batch_size, reference_cache(data))
    return card.nearest_picture(pixels)


def _extractor_name(data: Data, settings: Eval) -> str:
    return settings.extractor or f"{data.name}-classifier@{CHAMPION}"


@contextmanager
def _same_extractor(uri: str, protocol: Protocol | None, extractor: Path | None) -> Iterator[Path | None]:
    """The classifier that `protocol` names by its digest; `extractor` where that is the one, or none is named."""
    if protocol is None or not protocol.extractor_digest or _digest(extractor) == protocol.extractor_digest:
        yield extractor
        return
    if protocol.extractor in extractors.KINDS:
        raise ProtocolError(
            f"the champion was scored with {protocol.extractor} weights of SHA-256 {protocol.extractor_digest[:12]}…, "
            f"not with those given; set eval.extractor to {protocol.extractor}:PATH of that file"
        )
    client = connect(uri)
    with reporting(uri):
        versions = client.search_model_versions(f"name='{protocol.extractor}'")
    for version in versions:
        if version.tags.get(mlflow_registry.DIGEST_TAG) == protocol.extractor_digest:
            with local_snapshot(f"{protocol.extractor}/{version.version}", uri) as found:
                yield found
            return
    raise ProtocolError(
        f"the champion was scored with the extractor {protocol.extractor} of digest "
        f"{protocol.extractor_digest[:12]}…, which the registry does not hold; register it, or promote by hand"
    )


def _digest(directory: Path | None) -> str:
    try:
        return load_extractor(directory).digest if directory else ""
    except CheckpointError:
        return ""
