"""Rules of health on curves and values."""

import math
import random
from dataclasses import replace

import pytest
import torch
from conftest import tiny_config

from genray.config import Health, differences
from genray.distributed import World
from genray.errors import ConfigError
from genray.health import (
    Monitor,
    balance_verdict,
    collapse_verdict,
    posterior_verdict,
    score_verdict,
)
from genray.health_signals import class_entropy, distance_within_classes, diversity, signals

CPU = World(0, 1, torch.device("cpu"))
OFF = Health(score_rule="off", collapse_rule="off", balance_rule="off", posterior_rule="off", skipped_rule="off")


def stopped_at(curve: list[float], ratio: float = 1.5, patience: int = 5) -> int | None:
    """Evaluation, counted from 1, at which a run with this curve is stopped."""
    return next((n for n in range(1, len(curve) + 1) if score_verdict(curve[:n], ratio, patience)), None)


def curve(points: dict[int, float], every: int = 2) -> list[float]:
    """FID at every `every` thousand steps, straight between the points (thousand steps: FID)."""
    found, steps = [], sorted(points)
    for step in range(every, steps[-1] + 1, every):
        after = next(s for s in steps if s >= step)
        before = max((s for s in steps if s < step), default=after)
        share = (step - before) / (after - before) if after > before else 1.0
        found.append(points[before] + share * (points[after] - points[before]))
    return found


# best and last FID of five CIFAR-10 GANs, by thousand steps; above 1.5 times the best from the third step on
COLLAPSES = {
    "dcgan": ({2: 190.0, 42: 49.0, 44: 72.0, 46: 74.0, 200: 137.4}, 54),
    "lsgan": ({2: 210.0, 22: 66.7, 24: 101.0, 200: 330.9}, 32),
    "ggan": ({2: 150.0, 46: 42.7, 64: 62.0, 66: 65.0, 200: 128.8}, 74),
    "acgan": ({2: 160.0, 14: 45.6, 16: 60.0, 18: 70.0, 100: 201.2}, 26),
    "projgan": ({2: 140.0, 18: 33.8, 32: 50.0, 34: 52.0, 200: 152.1}, 42),
}


@pytest.mark.parametrize("name", COLLAPSES)
def test_default_rule_stops_a_collapse_at_its_fifth_bad_score(name):
    points, stop = COLLAPSES[name]
    assert stopped_at(curve(points)) == stop // 2


@pytest.mark.parametrize("seed", range(25))
def test_default_rule_stops_no_healthy_curve_with_noise_and_spikes(seed):
    source = random.Random(seed)
    healthy = [(8 + 200 * math.exp(-n / 10)) * source.uniform(0.85, 1.15) for n in range(100)]
    for _ in range(5):
        spike = source.randrange(96)
        healthy[spike : spike + 2] = [3 * value for value in healthy[spike : spike + 2]]
    assert stopped_at(healthy) is None


def test_curve_that_ends_at_its_best_by_half_is_stopped_only_by_a_lower_ratio():
    slow = curve({2: 120.0, 10: 43.3, 200: 65.2})
    assert stopped_at(slow) is None
    assert stopped_at(slow, ratio=1.3) is not None


def test_one_good_score_begins_the_count_anew():
    assert not score_verdict([10, 20, 20, 20, 20, 10, 20, 20, 20, 20], 1.5, 5)
    assert score_verdict([10, 20, 20, 20, 20, 10, 20, 20, 20, 20, 20], 1.5, 5)


def test_scores_that_are_not_finite_count_as_worse_than_any():
    assert score_verdict([10.0, math.nan, math.inf, math.nan], 1.5, 3)
    assert not score_verdict([math.nan] * 9, 1.5, 3)


def test_kid_around_zero_is_no_collapse():
    kid = [-0.002, 0.0004, 0.0009, 0.0005, 0.0011, 0.0007]
    assert score_verdict(kid, 1.5, 5)
    assert not score_verdict(kid, 1.5, 5, spreads=[0.001] * 6)
    assert score_verdict([*kid, *[0.05] * 5], 1.5, 5, spreads=[0.001] * 11)


def test_accuracy_that_falls_to_chance_is_a_collapse():
    assert score_verdict([0.5, 0.97, 0.1, 0.1], 1.5, 2, higher_is_better=True)
    assert not score_verdict([0.5, 0.97, 0.9, 0.9], 1.5, 2, higher_is_better=True)


def test_diversity_below_a_share_of_its_largest_is_a_collapse():
    assert not collapse_verdict([0.1, 0.2, 0.11], 0.5)
    assert collapse_verdict([0.1, 0.2, 0.09], 0.5)


def test_images_that_were_one_from_the_first_are_a_collapse():
    assert collapse_verdict([0.0], 0.5)


def test_diversity_of_classes_that_are_each_one_image_is_zero():
    images = torch.arange(4, dtype=torch.uint8).mul(60).view(4, 1, 1, 1).expand(4, 3, 8, 8).repeat(8, 1, 1, 1)
    assert diversity(images, torch.arange(32) % 4) == 0
    assert diversity(images, None) > 0.3


def test_diversity_of_black_and_white_is_one():
    images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 4, 4)
    assert diversity(images, None) == pytest.approx(1)


def test_balance_is_lost_where_a_sure_discriminator_meets_a_rising_loss():
    assert balance_verdict([0.99] * 4, [1.0, 2.0, 3.0, 4.0], 0.98, 3)
    assert not balance_verdict([0.99] * 4, [1.0, 2.0, 1.9, 4.0], 0.98, 3)
    assert not balance_verdict([0.99, 0.99, 0.97, 0.99], [1.0, 2.0, 3.0, 4.0], 0.98, 3)
    assert not balance_verdict([0.99] * 3, [2.0, 3.0, 4.0], 0.98, 3)


def test_posterior_is_collapsed_only_after_its_patience():
    assert posterior_verdict([20.0, 0.1, 0.1, 0.1], 0.5, 3)
    assert not posterior_verdict([0.1, 20.0, 0.1, 0.1], 0.5, 3)


def test_codebook_has_collapsed_where_few_codes_are_used_for_its_patience():
    monitor = Monitor(Health(codebook_rule="stop", codebook_share=0.2, patience=2))
    said = []
    for step, share in enumerate((0.1, 0.9, 0.1, 0.15), start=1):
        monitor.log_point(step, {"tokenizer/codes_used": share})
        said += [(step, verdict.rule, verdict.reason) for verdict in monitor.decide(step, lambda: None)]
    reason = (
        "15.0% of the codes are used, less than 20% for 2 log points: the codebook has collapsed; "
        "use fewer codes, or quantizer=fsq"
    )
    assert said == [(4, "codebook", reason)]
    assert monitor.stopped == f"health.codebook_rule at step 4: {reason}"


def test_signals_of_a_gan_are_of_its_logged_means():
    values = {
        "discriminator/logits_reals": 2.0,
        "discriminator/logits_fakes": -1.0,
        "discriminator/accuracy_reals": 0.9,
        "discriminator/accuracy_fakes": 0.7,
        "discriminator/grad_norm": 4.0,
        "generator/grad_norm": 1.0,
    }
    assert signals(values) == {
        "health/logit_gap": 3.0,
        "health/sign_reals": pytest.approx(0.8),
        "health/discriminator_accuracy": pytest.approx(0.8),
        "health/grad_norm_ratio": 0.25,
    }
    assert signals({"vae/loss": 1.0}) == {}


def test_rule_that_goes_on_holding_is_told_of_once():
    monitor = Monitor(Health(patience=1))
    told = []
    for step, kl in enumerate((0.1, 0.2, 9.0, 0.1), start=1):
        monitor.log_point(step, {"vae/kl": kl})
        told.append([verdict.rule for verdict in monitor.decide(step, lambda: None)])
    assert told == [["posterior"], [], [], ["posterior"]]


def test_ratio_below_one_is_refused():
    with pytest.raises(ConfigError, match=r"health\.score_ratio=0\.5 must be at least 1"):
        Health(score_ratio=0.5)


def test_health_may_differ_in_a_resumed_run_unless_it_rolls_back():
    saved = tiny_config()
    warned = replace(saved, health=Health(score_rule="warn", score_ratio=2))
    rolled = replace(saved, health=Health(score_rule="rollback"))
    assert differences(saved, warned) == []
    assert differences(saved, rolled) == ["health.score_rule: 'stop' -> 'rollback'"]
    assert differences(rolled, replace(rolled, health=Health(score_rule="rollback", max_rollbacks=9))) == []


def test_entropy_of_one_class_is_zero_and_of_all_alike_its_logarithm():
    assert class_entropy(torch.eye(10)[:1].expand(80, -1)) == 0
    assert class_entropy(torch.eye(10).repeat(8, 1)) == pytest.approx(math.log(10))


def test_feature_distance_of_copies_within_each_class_is_zero():
    points, labels = torch.eye(4).repeat(5, 1), torch.arange(20) % 4
    assert distance_within_classes(points, labels) == 0
    assert distance_within_classes(points, None) == pytest.approx(2**0.5 * 150 / 190)
