"""Pictures: what stands in each place of them."""

from typing import get_args

import evaluation_snapshots as snapshots
import numpy as np
import pytest
import torch
from PIL import Image

from genray import cli, pictures, snapshot
from genray.config import Data, PictureKind
from genray.data.images import load_images
from genray.errors import ConfigError
from genray.evaluation.latent import latents_of
from genray.fitting import fit
from genray.models.vae import MLPVAE
from genray.objectives.elbo import ELBO
from genray.objectives.rae import RAE
from genray.sampling import grid, latents, sample, save_png, to_float, to_uint8


@pytest.fixture(scope="module")
def styled(tmp_path_factory):
    return snapshot.load(snapshots.save_stylegan2(tmp_path_factory.mktemp("models") / "styled"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return snapshot.load(snapshots.save_generator(tmp_path_factory.mktemp("models") / "plain"))


def test_slerp_of_unit_vectors_goes_along_the_circle():
    start, end = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    torch.testing.assert_close(pictures.slerp(start, end, 1 / 3), torch.tensor([0.75**0.5, 0.5]))


def test_slerp_starts_and_ends_at_its_ends():
    start, end = torch.randn(2, 16).unbind()
    torch.testing.assert_close(pictures.slerp(start, end, 0.0), start)
    torch.testing.assert_close(pictures.slerp(start, end, 1.0), end)


def test_slerp_of_parallel_vectors_is_a_line():
    start = torch.randn(16)
    torch.testing.assert_close(pictures.slerp(start, 3 * start, 0.5), 2 * start)


def test_interpolation_rows_start_and_end_at_latents_of_the_seed(plain):
    images, columns = pictures.draw("interpolation", plain, 3, 0, None, 1.0)
    ends = to_uint8(plain.module.generate(latents(6, 8, 0)))
    assert images.shape == (30, 1, 8, 8) and columns == 10
    apart = (images[[0, 9, 10, 19, 20, 29]].int() - ends.int()).abs()
    assert apart.max() <= 1


def test_class_sweep_has_one_latent_a_row_and_one_class_a_column(styled):
    images, columns = pictures.draw("classes", styled, 2, 0, None, 1.0)
    z = latents(2, 4, 0)
    expected = to_uint8(styled.module.generate(z[1:], torch.tensor([7])))
    assert columns == 10 and (images[17].int() - expected[0].int()).abs().max() <= 1


def test_class_sweep_of_an_unconditional_model_is_refused(plain):
    with pytest.raises(ConfigError, match="--kind=classes: the model of 'digits-generator' is unconditional"):
        pictures.draw("classes", plain, 2, 0, None, 1.0)


def test_truncation_sweep_begins_with_one_image_and_has_the_sample_itself_at_one(styled):
    images, columns = pictures.draw("truncation", styled, 4, 0, 3, 1.0)
    rows = images.view(4, columns, 1, 8, 8)
    assert len(rows[:, 0].unique(dim=0)) == 1
    assert torch.equal(rows[:, 4], sample(styled, 4, 0, label=3))


def test_style_mixing_of_an_image_with_itself_is_that_image(styled):
    module = styled.module
    images, columns = pictures.draw("styles", styled, 1, 0, 3, 1.0)
    w = module.styles(latents(2, 4, 0), torch.tensor([3, 3]))
    first = module.num_styles // 2
    mixed = torch.cat([w[:1, None].expand(-1, first, -1), w[1:, None].expand(-1, module.num_styles - first, -1)], 1)
    expected = to_uint8(torch.cat([module.synthesise(w[1:]), module.synthesise(w[:1]), module.synthesise(mixed)]))
    assert columns == 2 and (images[0] == 255).all()
    assert (images[1:].int() - expected.int()).abs().max() <= 1


def test_style_mixing_of_a_model_without_styles_is_refused(plain):
    with pytest.raises(ConfigError, match="--kind=styles: the model of 'digits-generator' has no styles"):
        pictures.draw("styles", plain, 2, 0, None, 1.0)


def vae_told_the_label(directory, objective=None):
    """With means, spreads and divergences of its three latents that differ."""

    def scatter(module):
        module.encoder[-1].weight.mul_(torch.tensor([1.0, 9.0, 4.0, 0.2, 0.2, 0.2])[:, None])
        module.encoder[-1].bias[3:] = torch.tensor([-1.0, -0.5, -4.0])

    model = MLPVAE(latent_dim=3, hidden=16, conditional=True)
    return snapshots.save(directory, model, objective or ELBO(), change=scatter)


def test_reconstructions_stand_beside_the_test_images_that_the_seed_picks(tmp_path):
    directory, out = vae_told_the_label(tmp_path / "vae"), tmp_path / "r.png"
    command = ["sample", str(directory), "--kind", "reconstructions", "--num", "6", "--seed", "3", "--out", str(out)]
    assert cli.main(command) == 0
    images, model = load_images(Data(name="digits"), "test"), snapshot.load(directory)
    picked = torch.randperm(len(images.images), generator=torch.Generator().manual_seed(3))[:6]
    own = images.images[picked]
    back = to_uint8(model.module.reconstruct(to_float(own), images.labels[picked]))
    pairs = torch.cat([torch.stack(pair) for pair in zip(own, back, strict=True)])
    assert np.array_equal(np.asarray(Image.open(out)), grid(pairs, 8))


def test_reconstructions_of_fewer_images_than_a_row_fill_it(tmp_path):
    model = snapshot.load(snapshots.save_tokenizer(tmp_path / "tokenizer"))
    images, columns = pictures.draw_of("reconstructions", model, load_images(Data(name="digits"), "test"), 2, 0)
    assert images.shape == (4, 1, 8, 8) and columns == 4


def test_reconstructions_of_a_generator_are_refused(plain):
    with pytest.raises(ConfigError, match="is a generator, which reconstructs nothing"):
        pictures.draw_of("reconstructions", plain, load_images(Data(name="digits"), "test"), 2, 0)


def test_traversal_rows_change_one_latent_each_by_three_deviations_the_greatest_divergence_first(tmp_path):
    model, images = snapshot.load(vae_told_the_label(tmp_path / "vae")), load_images(Data(name="digits"), "test")
    made, columns = pictures.draw_of("traversals", model, images, 8, 4)
    module = model.module
    mu, logvar = module.encode(to_float(images.images), images.labels)
    divergence = (0.5 * (mu**2 + logvar.exp() - 1 - logvar)).mean(0)
    place = torch.randperm(len(images.images), generator=torch.Generator().manual_seed(4))[0]
    points = latents_of(model, images.images, images.labels, 4)
    rows = made.view(3, columns, 1, 8, 8)
    assert columns == 11
    for row, dim in zip(rows, divergence.argsort(descending=True), strict=True):
        for column in (0, 10):
            z = mu[place].clone()
            z[dim] = points[:, dim].mean() + (column - 5) / 5 * 3 * points[:, dim].std()
            expected = to_uint8(2 * module.decode(z[None], images.labels[place][None]).sigmoid() - 1)
            assert (row[column].int() - expected[0].int()).abs().max() <= 1
    assert not torch.equal(rows[0, 0], rows[0, 10])


def test_traversals_of_a_model_with_a_second_stage_are_those_of_the_model_before(tmp_path):
    train, images = (load_images(Data(name="digits"), split) for split in ("train", "test"))
    before = snapshots.save_vae(tmp_path / "vae", data_digest=train.digest)
    fit(before, tmp_path / "fitted", train, distribution="second-stage", num_steps=2)
    first, second = (
        pictures.draw_of("traversals", snapshot.load(path), images, 2, 4)[0] for path in (before, tmp_path / "fitted")
    )
    assert torch.equal(first, second)


def test_traversals_of_a_regularised_autoencoder_begin_with_what_scatters_most(tmp_path):
    model = snapshot.load(vae_told_the_label(tmp_path / "rae", RAE()))
    images = load_images(Data(name="digits"), "test")
    means = model.module.encode(to_float(images.images), images.labels)[0]
    points = latents_of(model, images.images, images.labels, 0)
    torch.testing.assert_close(points, means)
    both, _ = pictures.draw_of("traversals", model, images, 1, 0)
    last = means.var(0).argmax()
    place = torch.randperm(len(images.images), generator=torch.Generator().manual_seed(0))[0]
    z = means[place].clone()
    z[last] = means[:, last].mean()
    expected = to_uint8(2 * model.module.decode(z[None], images.labels[place][None]).sigmoid() - 1)
    assert len(both) == 11 and (both[5].int() - expected[0].int()).abs().max() <= 1


def test_traversals_of_a_model_without_a_vector_of_latents_are_refused(tmp_path):
    model = snapshot.load(snapshots.save_tokenizer(tmp_path / "tokenizer"))
    with pytest.raises(ConfigError, match="is a tokenizer without one vector of latents"):
        pictures.draw_of("traversals", model, load_images(Data(name="digits"), "test"), 2, 0)


@pytest.mark.parametrize("kind", pictures.OF_IMAGES)
def test_picture_of_no_images_is_refused(plain, kind):
    with pytest.raises(ConfigError, match="num=0 must be at least 1"):
        pictures.draw_of(kind, plain, load_images(Data(name="digits"), "test"), 0, 0)


@pytest.mark.parametrize("kind", pictures.KINDS)
def test_picture_of_zero_rows_is_refused(styled, kind):
    with pytest.raises(ConfigError, match="num=0 must be at least 1"):
        pictures.draw(kind, styled, 0, 0, None, 1.0)


ALL = get_args(PictureKind)
FITTING = {
    "generator": {"interpolation", "truncation", "nearest"},
    "stylegan2": {"interpolation", "classes", "truncation", "styles", "nearest"},
    "vae": {"interpolation", "truncation", "reconstructions", "traversals", "nearest"},
    "tokenizer": {"reconstructions"},
    "classifier": set(),
}


@pytest.mark.parametrize("product", FITTING)
def test_run_draws_every_picture_that_its_model_can_make_and_no_other(tmp_path, product):
    model = snapshot.load(getattr(snapshots, f"save_{product}")(tmp_path / "model"))
    images = load_images(Data(name="digits"), "test")
    drawn = pictures.drawn(ALL, model, images, lambda samples: grid(samples))
    assert set(drawn) == FITTING[product]
    if product != "classifier":
        assert all(len(np.unique(pixels)) > 2 for pixels in drawn.values()), "one has nothing but a frame"
    if "interpolation" in drawn:
        expected = grid(*pictures.draw("interpolation", model, pictures.ROWS, 0, None, 1.0))
        np.testing.assert_array_equal(drawn["interpolation"], expected)


def test_run_without_an_extractor_draws_no_nearest_images(plain):
    images = load_images(Data(name="digits"), "test")
    assert set(pictures.drawn(ALL, plain, images, None)) == FITTING["generator"] - {"nearest"}


def test_config_knows_every_picture_of_a_snapshot():
    assert set(ALL) == (set(pictures.KINDS) | set(pictures.OF_IMAGES) | {"nearest"}) - {"grid"}


def test_time_lapse_shows_the_grids_of_a_run_in_the_order_of_its_steps(tmp_path):
    folder = tmp_path / "run" / pictures.GRIDS
    folder.mkdir(parents=True)
    for step, grey in ((1000, 250), (500, 10), (10_000, 120)):
        save_png(folder / f"{step:09d}.png", np.full((40, 50, 3), grey, np.uint8))
    assert cli.main(["sample", str(tmp_path / "run"), "--kind", "time-lapse", "--out", str(tmp_path / "x.gif")]) == 0
    with Image.open(tmp_path / "x.gif") as film:
        greys = []
        for frame in range(film.n_frames):
            film.seek(frame)
            greys.append(film.convert("L").getpixel((0, 0)))
    assert greys == [10, 250, 120]


def test_time_lapse_of_a_run_without_grids_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"has no PNG files; give the folder of a run"):
        pictures.time_lapse(tmp_path, tmp_path / "x.gif")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "{0}"], "--out={0} must be the name of a file that ends in .png"),
        (["--out", "{0}/x.gif"], "--out={0}/x.gif must be the name of a file that ends in .png"),
        (
            ["--kind", "time-lapse", "--out", "{0}/x.mp4"],
            "--out={0}/x.mp4 must be the name of a file that ends in .gif",
        ),
        (["--out", "{0}/file/x.png"], "{0}/file/x.png cannot be written: "),
        (["--kind", "classes", "--label", "9"], "--label=9: --kind=classes draws no images of one class; leave it out"),
        (
            ["--kind", "traversals", "--truncation", "0.5"],
            "--truncation=0.5: --kind=traversals draws no latents; leave it out",
        ),
        (["--out", "{0}/x.png", "--seed", str(2**64)], f"seed={2**64} must be at least 0 and below 2**63"),
        (["--out", "{0}/x.png", "--truncation", "inf"], "truncation=inf must be at least 0 and below 2**63"),
    ],
)
def test_picture_that_cannot_be_made_is_refused_in_one_line(words, message, tmp_path, capsys):
    directory = snapshots.save_generator(tmp_path / "generator")
    (tmp_path / "file").touch()
    assert cli.main(["sample", str(directory), *(word.format(tmp_path) for word in words)]) == 1
    assert capsys.readouterr().err.strip().startswith(f"error: {message.format(tmp_path)}")


def test_sample_writes_the_picture_that_was_asked_for(tmp_path):
    directory = snapshots.save_stylegan2(tmp_path / "styled")
    out = tmp_path / "mixed.png"
    assert cli.main(["sample", str(directory), "--kind", "styles", "--num", "3", "--out", str(out)]) == 0
    images, columns = pictures.draw("styles", snapshot.load(directory), 3, 0, None, 1.0)
    assert np.array_equal(np.asarray(Image.open(out)), grid(images, columns))
