"""What is fitted to the latents of trained autoencoders: what is drawn from it, and where it goes."""

import math
from dataclasses import replace
from pathlib import Path

import evaluation_snapshots as snapshots
import pytest
import torch
from conftest import tiny_config

from genray import snapshot
from genray.cli import main
from genray.config import Data, Eval
from genray.data.images import ImageSet, load_images
from genray.errors import ConfigError
from genray.evaluation.latent import latents_of
from genray.evaluation.scoring import score_snapshot
from genray.fitting import Distribution, fit, learn, mixture_of
from genray.models.fitted_latents import MaskedFlows, SecondStage
from genray.models.vae import MLPVAE
from genray.models.vae_gan import ConvVAEGAN
from genray.objectives.elbo import ELBO
from genray.objectives.rae import RAE
from genray.objectives.vae_gan import VAEGAN
from genray.sampling import sample
from genray.start import build_networks
from genray.storage import RunFolder
from genray.streams import generator

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


def banana(num: int, seed: int) -> tuple[torch.Tensor, float]:
    """Points (1, num, 2), whose second dimension is about the square of the first, and their mean log density."""
    noise = torch.randn(num, 2, generator=torch.Generator().manual_seed(seed))
    nats = -0.5 * (noise.square() + math.log(2 * math.pi)).sum(dim=1) - math.log(0.3)
    return torch.stack([noise[:, 0], noise[:, 0].square() + 0.3 * noise[:, 1]], dim=1).unsqueeze(0), float(nats.mean())


@pytest.mark.parametrize("kind", ["flows", "second-stage"])
def test_learned_density_of_a_banana_comes_near_the_true_one(kind: str) -> None:
    points, nats = banana(5000, seed=1)
    torch.manual_seed(0)
    distribution = MaskedFlows(3, 2, hidden=32) if kind == "flows" else SecondStage(2, hidden=64)
    normal = torch.distributions.MultivariateNormal(points[0].mean(0), points[0].T.cov())
    assert normal.log_prob(points[0]).mean() < nats - 0.9
    num_steps, gap = (300, 0.15) if kind == "flows" else (500, 0.5)
    assert learn(distribution, points, num_steps, seed=0) > nats - gap


def test_learning_keeps_the_step_that_was_best_for_points_held_out() -> None:
    points, _ = banana(100, seed=1)
    torch.manual_seed(0)
    distribution = MaskedFlows(3, 2, hidden=64)
    best = learn(distribution, points, 800, seed=0)
    order = torch.randperm(100, generator=generator(0, "fit/split"))
    with torch.no_grad():
        found = distribution.log_density(points[0, order[:10]]).mean()
    assert float(found) == pytest.approx(best, abs=1e-5)
    assert best > -1.9  # at the last step it is -2.3: the others are known by heart


def test_points_held_out_teach_nothing() -> None:
    points, _ = banana(100, seed=1)
    other = points.clone()
    other[0, torch.randperm(100, generator=generator(0, "fit/split"))[:10]] += 1
    states = []
    for each in (points, other):
        torch.manual_seed(0)
        distribution = MaskedFlows(2, 2, hidden=16)
        learn(distribution, each, 3, seed=0)
        states.append(distribution.state_dict())
    assert not torch.equal(points, other)
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.parametrize("distribution", ["mixture", "second-stage", "flows"])
def test_draws_of_a_fitted_model_lie_as_its_latents_do(
    distribution: Distribution, rae: Path, images: ImageSet, tmp_path: Path
) -> None:
    fit(rae, tmp_path / "fitted", images, distribution=distribution, num_components=4, num_steps=300)
    fitted = snapshot.load(tmp_path / "fitted")
    points = latents_of(fitted, images.images, images.labels, seed=0)
    drawn = fitted.module.from_prior(torch.randn(20_000, fitted.module.latent_dim))  # type: ignore[operator]
    assert (points.mean(0).abs() > 1).any()
    times = 1 if distribution == "mixture" else 2  # 300 steps do not fit as well as what is solved for
    torch.testing.assert_close(drawn.mean(0), points.mean(0), atol=0.1 * times, rtol=0.05 * times)
    torch.testing.assert_close(drawn.T.cov(), points.T.cov(), atol=0.15 * times, rtol=0.1 * times)


@pytest.mark.parametrize("distribution", ["mixture", "second-stage", "flows"])
def test_fitted_model_keeps_the_weights_and_draws_other_images(
    distribution: Distribution, rae: Path, images: ImageSet, tmp_path: Path
) -> None:
    fit(rae, tmp_path / "fitted", images, distribution=distribution, num_steps=2)
    before, after = snapshot.load(rae), snapshot.load(tmp_path / "fitted")
    kept = after.module.state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in before.module.state_dict().items())
    assert not torch.equal(sample(before, 8, 0), sample(after, 8, 0))


@pytest.mark.parametrize("distribution", ["mixture", "second-stage", "flows"])
def test_fit_of_the_same_seed_gives_the_same_snapshot_and_of_another_another(
    distribution: Distribution, rae: Path, images: ImageSet, tmp_path: Path
) -> None:
    first, again, other = (
        fit(rae, tmp_path / name, images, distribution=distribution, num_components=3, num_steps=2, seed=seed)
        for name, seed in (("a", 5), ("b", 5), ("c", 6))
    )
    assert first == again != other


def test_what_was_fitted_before_gives_way(rae: Path, images: ImageSet, tmp_path: Path) -> None:
    fit(rae, tmp_path / "mixture", images, num_components=3)
    through = fit(tmp_path / "mixture", tmp_path / "a", images, distribution="flows", num_steps=2)
    assert through == fit(rae, tmp_path / "b", images, distribution="flows", num_steps=2)


def test_run_of_a_model_with_what_is_fitted_after_training_is_refused(images: ImageSet, tmp_path: Path) -> None:
    config = tiny_config(model=replace(MODEL, num_masked_flows=2), objective=ELBO())
    with pytest.raises(ConfigError, match=r"^model\.num_masked_flows=2 is fitted to latents after training"):
        build_networks(config, images, RunFolder.open(str(tmp_path), "run"))


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


def test_fit_to_a_folder_that_is_there_is_refused_and_leaves_it(rae: Path, images: ImageSet, tmp_path: Path) -> None:
    kept = tmp_path / "mine" / "thesis.txt"
    kept.parent.mkdir()
    kept.write_text("years")
    for place in (kept.parent, kept, rae):
        with pytest.raises(ConfigError, match=r"exists; give the name of a new folder$"):
            fit(rae, place, images, num_components=3)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"] and kept.read_text() == "years"
    assert snapshot.load(rae).config.model.num_components == 0  # type: ignore[attr-defined]


def test_fitted_vae_has_no_likelihood_since_the_bound_is_of_the_prior_before(images: ImageSet, tmp_path: Path) -> None:
    vae = snapshots.save(tmp_path / "vae", MODEL, ELBO(), data_digest=images.digest)
    fit(vae, tmp_path / "fitted", images, num_components=3)
    extractor = snapshots.save_classifier(tmp_path / "classifier")
    settings = Eval(num_samples=100, num_seeds=1)
    for path, expected in ((vae, True), (tmp_path / "fitted", False)):
        scores = score_snapshot(path, data=DIGITS, settings=settings, extractor=extractor)
        assert ("elbo" in {score.metric for score in scores}) == expected
    with pytest.raises(ConfigError, match=r"\(model\.num_components\), and the bound is of the prior before"):
        score_snapshot(
            tmp_path / "fitted", data=DIGITS, settings=replace(settings, metrics=("elbo",)), extractor=extractor
        )


def test_command_makes_a_snapshot_that_samples(rae: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", str(rae), "--to", str(tmp_path / "fitted"), "--num-components", "3"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "fitted")
    assert sample(snapshot.load(tmp_path / "fitted"), 4, seed=0).shape == (4, 1, 8, 8)


def test_fit_of_a_classifier_is_refused(images: ImageSet, tmp_path: Path) -> None:
    classifier = snapshots.save_classifier(tmp_path / "classifier")
    with pytest.raises(ConfigError, match="is a classifier, which has no latents to fit"):
        fit(classifier, tmp_path / "fitted", images, num_components=3)


@pytest.mark.parametrize("wrong", [{"num_components": 0}, {"distribution": "flows", "num_steps": 0}], ids=str)
def test_fit_of_a_number_out_of_range_is_refused(wrong, rae: Path, images: ImageSet, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^num_(components|steps)=0 must"):
        fit(rae, tmp_path / "fitted", images, **wrong)
    assert not (tmp_path / "fitted").exists()


def test_fit_to_other_images_is_refused(images: ImageSet, tmp_path: Path) -> None:
    other = snapshots.save(tmp_path / "rae", MODEL, RAE())
    with pytest.raises(ConfigError, match="the images are not those"):
        fit(other, tmp_path / "fitted", images, num_components=3)


def test_fitted_rae_is_scored_by_features_and_has_no_likelihood(rae: Path, images: ImageSet, tmp_path: Path) -> None:
    fit(rae, tmp_path / "fitted", images, num_components=3)
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
@pytest.mark.parametrize("distribution", ["mixture", "second-stage", "flows"])
def test_fitted_model_is_served_as_it_samples(
    distribution: Distribution, rae: Path, images: ImageSet, tmp_path: Path
) -> None:
    pyfunc = pytest.importorskip("mlflow.pyfunc", reason="needs genray[mlflow]")
    from genray.mlflow_model import package

    fit(rae, tmp_path / "fitted", images, distribution=distribution, num_steps=2)
    package(tmp_path / "fitted", tmp_path / "model")
    served = pyfunc.load_model(str(tmp_path / "model")).predict([{"n": 6, "seed": 3}])
    expected = sample(snapshot.load(tmp_path / "fitted"), 6, seed=3).permute(0, 2, 3, 1)
    assert abs(served.astype(int) - expected.numpy().astype(int)).max() <= 1
