"""Quantisers against brute force and closed forms; tokenizers there and back."""

import pytest
import torch

from genray.models.latent_map import Unquantized
from genray.models.tokenizer import DEAD_USE, FSQ, USE_DECAY, VQ, Tokenizer, nearest


def test_nearest_code_is_that_of_the_least_distance() -> None:
    points, centres = torch.randn(50, 4), torch.randn(9, 4)
    assert torch.equal(nearest(points, centres), torch.cdist(points.double(), centres.double()).argmin(dim=1))


def test_vq_hands_the_gradient_of_its_codes_to_the_features() -> None:
    features, weights = torch.randn(2, 3, 4, 4, requires_grad=True), torch.randn(2, 3, 4, 4)
    taken, _, quantized = VQ(8, 3)(features)
    (taken * weights).sum().backward()
    torch.testing.assert_close(taken, quantized)
    assert torch.equal(features.grad, weights)  # type: ignore[arg-type]


def test_vq_starts_at_the_centres_of_clusters() -> None:
    centres = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]])
    points = centres.repeat(40, 1) + 0.1 * torch.randn(120, 2)
    quantizer = VQ(3, 2)
    quantizer.start(points, torch.arange(120))
    gaps = torch.cdist(quantizer.codebook, centres).min(dim=1).values
    assert gaps.max() < 0.1
    torch.testing.assert_close(quantizer.sums / quantizer.weights.unsqueeze(1), quantizer.codebook)


def test_vq_codes_after_one_step_are_running_means() -> None:
    quantizer, points = VQ(4, 2), torch.randn(64, 2)
    before, codes = quantizer.codebook.clone(), nearest(points, quantizer.codebook)
    quantizer.learn(*quantizer.seen(points, codes), points[:5])
    for k in range(4):
        own = points[codes == k]
        weight = USE_DECAY / 4 + (1 - USE_DECAY) * len(own) / 64
        mean = (USE_DECAY / 4 * before[k] + (1 - USE_DECAY) * own.sum(dim=0) / 64) / weight
        torch.testing.assert_close(quantizer.codebook[k], mean, rtol=1e-4, atol=1e-5)
        assert quantizer.use[k].item() == pytest.approx(weight)


def test_vq_revives_dead_codes_at_candidates_one_each() -> None:
    quantizer, points = VQ(6, 2), torch.zeros(10, 2)
    candidates = torch.tensor([[5.0, 5.0], [7.0, 7.0]])
    share, total = quantizer.seen(points, torch.zeros(10, dtype=torch.int64))
    before = quantizer.codebook.clone()
    steps = 0
    while quantizer.use[1] >= DEAD_USE / 6:
        torch.testing.assert_close(quantizer.codebook[1:], before[1:])
        quantizer.learn(share, total, candidates)
        steps += 1
    assert steps == 349  # 0.99 ** 349 is the first power below 0.03
    torch.testing.assert_close(quantizer.codebook[1:], candidates[[0, 1, 0, 1, 0]])
    assert (quantizer.use > DEAD_USE / 6).sum() == 1  # revived, but not used


def test_vq_moves_nothing_for_features_that_are_not_finite() -> None:
    quantizer = VQ(4, 2)
    before = {name: buffer.clone() for name, buffer in quantizer.named_buffers()}
    share, total = quantizer.seen(torch.full((8, 2), torch.nan), torch.zeros(8, dtype=torch.int64))
    quantizer.learn(share, total, torch.randn(3, 2))
    assert all(torch.equal(buffer, before[name]) for name, buffer in quantizer.named_buffers())


@pytest.mark.parametrize("levels", [(5,), (8,), (2,), (3, 4)])
def test_fsq_reaches_every_combination_of_levels(levels: tuple[int, ...]) -> None:
    quantizer = FSQ(levels)
    features = 3 * torch.randn(4, len(levels), 40, 40)
    values, codes, _ = quantizer(features)
    assert codes.unique().tolist() == list(range(quantizer.num_codes))
    assert [len(values[:, d].unique()) for d in range(len(levels))] == list(levels)
    assert values.abs().max() <= 1


def test_fsq_values_of_its_codes_are_what_it_gave() -> None:
    quantizer = FSQ((8, 5, 2))
    values, codes, _ = quantizer(3 * torch.randn(2, 3, 6, 6))
    torch.testing.assert_close(quantizer.values(codes), values)


def test_fsq_gradient_is_that_of_the_values_before_rounding() -> None:
    features = torch.randn(1, 1, 8, 8, dtype=torch.float32, requires_grad=True)
    FSQ((5,))(features)[0].sum().backward()
    expected = (1 - torch.tanh(features.detach()) ** 2) * 2.002 / 2
    torch.testing.assert_close(features.grad, expected)


def test_continuous_latents_are_drawn_from_their_posteriors() -> None:
    mu, logvar, noise = torch.randn(3, 2, 4, 5, 6).unbind()
    z, *told = Unquantized(4)(torch.cat([mu, logvar], dim=1), noise)
    shares = torch.distributions.Normal(0.0, 1.0).cdf(noise)
    torch.testing.assert_close(z, torch.distributions.Normal(mu, (logvar / 2).exp()).icdf(shares), atol=1e-4, rtol=1e-4)
    assert torch.equal(told[0], mu) and torch.equal(told[1], logvar)


def test_scaled_latents_have_mean_0_and_deviation_1_and_come_back() -> None:
    quantizer, latents = Unquantized(3), 5 + 7 * torch.randn(400, 3, 4, 4)
    for _ in range(1500):
        quantizer.learn(latents.mean(dim=(0, 2, 3)), latents.square().mean(dim=(0, 2, 3)))
    scaled = quantizer.scaled(latents)
    torch.testing.assert_close(scaled.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(scaled.std(dim=(0, 2, 3)), torch.ones(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(quantizer.values(scaled), latents)


def test_moments_of_latents_after_one_step_are_running_means() -> None:
    quantizer = Unquantized(2)
    quantizer.learn(torch.tensor([4.0, 0.0]), torch.tensor([20.0, 3.0]))
    torch.testing.assert_close(quantizer.mean, torch.tensor([0.04, 0.0]))
    torch.testing.assert_close(quantizer.variance, torch.tensor([0.99 + 0.2 - 0.04**2, 0.99 + 0.03]))


def test_latents_that_never_change_are_scaled_to_finite_numbers() -> None:
    quantizer = Unquantized(1)
    quantizer.mean.fill_(3.0)
    quantizer.square.fill_(9.0)
    assert quantizer.scaled(torch.full((1, 1, 2, 2), 3.0)).abs().max() == 0


def test_continuous_tokenizer_decodes_the_middle_of_the_posteriors_that_it_encodes() -> None:
    network = Tokenizer(quantizer="none", width=8, code_dim=6).build((3, 16, 24), 0)["tokenizer"].eval()
    network.quantizer.mean.normal_()
    network.quantizer.square.fill_(9.0)
    images = torch.rand(2, 3, 16, 24) * 2 - 1
    found, latents = network(images), network.encode(images)
    assert latents.shape == (2, *network.latent_shape) == (2, 6, 4, 6)
    torch.testing.assert_close(network.quantizer.values(latents), found.features)
    torch.testing.assert_close(network.decode(latents), found.logits)
    drawn = network(images, torch.ones(2, 6, 4, 6))
    expected = network.decoder(found.features + torch.exp(0.5 * found.logvar))
    torch.testing.assert_close(drawn.logits, expected)


@pytest.mark.parametrize("quantizer", ["vq", "fsq"])
def test_tokenizer_decodes_the_codes_that_it_encodes(quantizer: str) -> None:
    model = Tokenizer(quantizer=quantizer, width=8, num_codes=16)  # type: ignore[arg-type]
    network = model.build((3, 16, 24), 0)["tokenizer"].eval()
    images = torch.rand(2, 3, 16, 24) * 2 - 1
    found, codes = network(images), network.encode(images)
    assert codes.shape == (2, 4, 6)
    assert torch.equal(codes, found.codes)
    # what training decodes is features + (codes - features), equal but for rounding
    torch.testing.assert_close(network.decode(codes), found.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(network.reconstruct(images), 2 * found.logits.sigmoid() - 1, atol=1e-4, rtol=1e-4)


def test_nearest_code_in_bf16_training_is_that_of_fp32() -> None:
    points, centres = 4 + torch.randn(500, 8) / 10, 4 + torch.randn(50, 8) / 10
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = nearest(points, centres)
    assert torch.equal(found, nearest(points, centres))


def test_tokenizer_refuses_sizes_that_cannot_be_halved() -> None:
    with pytest.raises(ValueError) as caught:
        Tokenizer().check((1, 30, 32))
    assert str(caught.value) == (
        "model tokenizer halves each side 2 times, and 30 x 32 pixels do not divide by 4; set "
        "model.num_downsamplings lower, or data.image_size, e.g. to 28 32"
    )


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"num_codes": 1}, "model.num_codes=1 must be at least 2"),
        ({"levels": (8, 1)}, r"model.levels=\(8, 1\) must each be at least 2, e.g. 8 5 5 5"),
    ],
)
def test_tokenizer_refuses_knobs_out_of_range(knobs: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        Tokenizer(**knobs)  # type: ignore[arg-type]
