"""Mixtures fitted to the latents of trained autoencoders: what is drawn from them, and where they go."""

from pathlib import Path

import evaluation_snapshots as snapshots
import pytest
import torch

from genray import fitting, snapshot
from genray.cli import main
from genray.config import Data, Eval
from genray.data.images import ImageSet, load_images
from genray.errors import ConfigError
from genray.evaluation.latent import latents_of
from genray.evaluation.scoring import score_snapshot
from genray.fitting import fit_mixture, mixture_of
from genray.models.vae import MLPVAE
from genray.models.vae_gan import ConvVAEGAN
from genray.objectives.elbo import ELBO
from genray.objectives.rae import RAE
from genray.objectives.vae_gan import VAEGAN
from genray.sampling import sample

DIGITS = Data(name="digits")
MODEL = MLPVAE(latent_dim=3, hidden=16)


@pytest.fixture(scope="module")
def images() -> ImageSet:
    return load_images(DIGITS, "train")


@pytest.fixture(scope="module")
def rae(tmp_path_factory: pytest.TempPathFactory, images: ImageSet) -> Path:
    """A snapshot whose latents are far from a standard normal distribution, as are those of a real one."""

    def spread(module: torch.nn.Module) -> None:
        module.encoder[-1].weight.mul_(20)  # type: ignore[operator, union-attr]
        module.encoder[-1].bias.add_(3)  # type: ignore[operator, union-attr]

    return snapshots.save(
        tmp_path_factory.mktemp("rae") / "rae", MODEL, RAE(), change=spread, data_digest=images.digest
    )


def test_mixture_finds_the_clusters_that_points_were_drawn_from() -> None:
    means = torch.tensor([[-6.0, 0.0], [6.0, 3.0]])
    factor = torch.tensor([[1.0, 0.0], [0.9, 0.4]])
    points = torch.cat([m + torch.randn(n, 2) @ factor.T for m, n in zip(means, (3000, 1000), strict=True)])
    weights, found, factors = mixture_of(points, 2, seed=0)
    order = found[:, 0].argsort()
    torch.testing.assert_close(weights[order], torch.tensor([0.75, 0.25]), atol=0.01, rtol=0)
    torch.testing.assert_close(found[order], means, atol=0.15, rtol=0)
    torch.testing.assert_close(factors[0] @ factors[0].T, factor @ factor.T, atol=0.15, rtol=0)


def test_draws_of_a_fitted_model_lie_as_its_latents_do(rae: Path, images: ImageSet, tmp_path: Path) -> None:
    fit_mixture(rae, tmp_path / "fitted", images, num_components=4)
    fitted = snapshot.load(tmp_path / "fitted")
    points = latents_of(fitted, images.images, images.labels, seed=0)
    drawn = fitted.module.from_prior(torch.randn(20_000, 3))  # type: ignore[operator]
    assert (points.mean(0).abs() > 1).any()
    torch.testing.assert_close(drawn.mean(0), points.mean(0), atol=0.1, rtol=0.05)
    torch.testing.assert_close(drawn.T.cov(), points.T.cov(), atol=0.15, rtol=0.1)


def test_fitted_model_keeps_the_weights_and_draws_other_images(rae: Path, images: ImageSet, tmp_path: Path) -> None:
    fit_mixture(rae, tmp_path / "fitted", images, num_components=2)
    before, after = snapshot.load(rae), snapshot.load(tmp_path / "fitted")
    kept = after.module.state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in before.module.state_dict().items())
    assert not torch.equal(sample(before, 8, 0), sample(after, 8, 0))


def test_fit_of_the_same_seed_gives_the_same_snapshot(rae: Path, images: ImageSet, tmp_path: Path) -> None:
    first, again = (fit_mixture(rae, tmp_path / name, images, num_components=3, seed=5) for name in "ab")
    assert first == again


@pytest.mark.parametrize(
    ("model", "objective"),
    [(MODEL, ELBO()), (ConvVAEGAN(latent_dim=3, width=8, discriminator_width=8), VAEGAN())],
    ids=["vae", "vae-gan"],
)
def test_vae_is_fitted_to_draws_of_its_posteriors_not_to_their_means(model, objective, images, tmp_path: Path) -> None:
    vae = snapshot.load(snapshots.save(tmp_path / "vae", model, objective, data_digest=images.digest))
    mu, logvar = vae.module.encode(images.images.float() / 127.5 - 1)  # type: ignore[operator]
    expected = logvar.exp().mean(0) + mu.var(0)
    points = latents_of(vae, images.images, images.labels, seed=0)
    torch.testing.assert_close(points.var(0), expected, rtol=0.15, atol=0.05)


def test_command_makes_a_snapshot_that_samples(rae: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", str(rae), "--to", str(tmp_path / "fitted"), "--num-components", "3"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "fitted")
    assert sample(snapshot.load(tmp_path / "fitted"), 4, seed=0).shape == (4, 1, 8, 8)


def test_fit_of_a_classifier_is_refused(images: ImageSet, tmp_path: Path) -> None:
    classifier = snapshots.save_classifier(tmp_path / "classifier")
    with pytest.raises(ConfigError, match="is a classifier, which has no latents to fit"):
        fit_mixture(classifier, tmp_path / "fitted", images, num_components=3)


def test_fit_to_other_images_is_refused(images: ImageSet, tmp_path: Path) -> None:
    other = snapshots.save(tmp_path / "rae", MODEL, RAE())
    with pytest.raises(ConfigError, match="the images are not those"):
        fitting.fit_mixture(other, tmp_path / "fitted", images, num_components=3)


def test_fitted_rae_is_scored_by_features_and_has_no_likelihood(rae: Path, images: ImageSet, tmp_path: Path) -> None:
    fit_mixture(rae, tmp_path / "fitted", images, num_components=3)
    extractor = snapshots.save_classifier(tmp_path / "classifier")
    for metrics in ((), ("fid",)):
        settings = Eval(metrics=metrics, num_samples=100, num_seeds=1)
        scores = score_snapshot(tmp_path / "fitted", data=DIGITS, settings=settings, extractor=extractor)
        assert scores[0].metric == "fid"
        assert not {"elbo", "nll"} & {score.metric for score in scores}
    with pytest.raises(ConfigError, match="was not trained on a bound of the likelihood"):
        settings = Eval(metrics=("nll",), num_samples=100, num_seeds=1)
        score_snapshot(tmp_path / "fitted", data=DIGITS, settings=settings, extractor=extractor)


@pytest.mark.mlflow
def test_fitted_model_is_served_as_it_samples(rae: Path, images: ImageSet, tmp_path: Path) -> None:
    pyfunc = pytest.importorskip("mlflow.pyfunc", reason="needs genray[mlflow]")
    from genray.mlflow_model import package

    fit_mixture(rae, tmp_path / "fitted", images, num_components=3)
    package(tmp_path / "fitted", tmp_path / "model")
    served = pyfunc.load_model(str(tmp_path / "model")).predict([{"n": 6, "seed": 3}])
    expected = sample(snapshot.load(tmp_path / "fitted"), 6, seed=3).permute(0, 2, 3, 1)
    assert abs(served.astype(int) - expected.numpy().astype(int)).max() <= 1
