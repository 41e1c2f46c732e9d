"""Domains, the values of trials, and what makes one better: properties, and what is refused."""

import json
import math
import random

import pytest
from conftest import tiny_config
from hypothesis import example, given, settings
from hypothesis import strategies as st

from genray.errors import ConfigError
from genray.evaluation.protocol import Protocol, Score
from genray.presets import PRESETS, preset
from genray.search import (
    Search,
    best_first,
    objective_metrics,
    objectives,
    pareto_front,
    parse_constraint,
    racing_config,
)
from genray.space import Domain, active, apply, check_space, draw, grid, pairs, space_of
from genray.spaces import SPACES

FINITE = {"allow_nan": False, "allow_infinity": False}
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(**FINITE) | st.text()
NUMBERS = st.lists(st.floats(-1e3, 1e3), max_size=3)
CONDITIONS = st.none() | st.tuples(st.just("model.width"), SCALARS)


@st.composite
def ranges(draw):
    kind = draw(st.sampled_from(["log", "uniform", "int"]))
    numbers = {
        "log": st.floats(1e-12, 1e12),
        "uniform": st.floats(-1e12, 1e12),
        "int": st.integers(-(10**9), 10**9),
    }[kind]
    low, high = sorted(draw(st.lists(numbers, min_size=2, max_size=2, unique=True)))
    return Domain(kind, (low, high), draw(CONDITIONS))


CHOICES = st.builds(
    Domain, st.just("choice"), st.lists(SCALARS | NUMBERS, min_size=1, max_size=4).map(tuple), CONDITIONS
)
DOMAINS = ranges() | CHOICES


def refused(call, *args, **kwargs) -> str:
    with pytest.raises(ConfigError) as error:
        call(*args, **kwargs)
    return str(error.value)


@settings(deadline=None)
@given(DOMAINS)
def test_domain_reads_what_it_writes(domain):
    found = Domain.parse(str(domain))
    assert repr(found) == repr(domain)  # 1, 1.0 and True are equal, and not the same


@pytest.mark.parametrize(
    "word", ["1", "true", "True", "null", "NaN", "1e-4", "if", "", "a b", '"x"', "[1]", "a=b", "if a=1"]
)
def test_word_that_looks_like_something_else_stays_a_word(word):
    domain = Domain("choice", (word, "plain"), when=("data.name", word))
    assert Domain.parse(str(domain)) == domain


def test_domain_of_lists_survives_its_record():
    domain = Domain.parse("choice [0.0, 0.9] [0.5, 0.99]")
    assert domain.values == ([0.0, 0.9], [0.5, 0.99])
    assert Domain.parse(str(domain)) == domain


def test_condition_takes_a_quoted_or_a_bare_value():
    expected = ("model.discriminator_norm", "none")
    assert Domain.parse('int 1 5 if model.discriminator_norm="none"').when == expected
    assert Domain.parse("int 1 5 if model.discriminator_norm=none").when == expected
    assert Domain.parse("int 1 5 if model.discriminator_norm = none").when == expected


@settings(deadline=None)
@given(ranges(), st.integers(0, 10**6))
def test_draw_lies_within_the_range(domain, seed):
    low, high = domain.values
    value = domain.draw(random.Random(seed))
    assert low <= value <= high
    assert isinstance(value, int) == (domain.kind == "int")


@settings(deadline=None)
@example(Domain("log", (999999999999.9961, 1000000000000.0)), 4)
@given(ranges(), st.integers(2, 9))
def test_points_rise_from_lowest_to_highest(domain, num):
    points = domain.points(num)
    low, high = domain.values
    assert points == sorted(points)
    assert (points[0], points[-1]) == (low, high)


def test_log_points_have_one_ratio():
    assert Domain("log", (1e-4, 1e-2)).points(3) == pytest.approx([1e-4, 1e-3, 1e-2])


def test_log_draws_are_even_in_their_logarithm():
    domain, source = Domain("log", (1e-4, 1.0)), random.Random(0)
    below = sum(domain.draw(source) < 1e-2 for _ in range(4000)) / 4000
    assert below == pytest.approx(0.5, abs=0.03)


SPACE = {
    "a": Domain("choice", (1, 2, 2)),
    "b": Domain("int", (1, 2), when=("a", 1)),
    "c": Domain("choice", ("x", "y"), when=("b", 2)),
}


def test_grid_has_each_combination_once():
    found = grid(SPACE, 3)
    assert found == [{"a": 1, "b": 1}, {"a": 1, "b": 2, "c": "x"}, {"a": 1, "b": 2, "c": "y"}, {"a": 2}]


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 100))
def test_conditional_values_are_there_exactly_if_they_count(seed, number):
    values = draw(SPACE, seed, number)
    assert ("b" in values) == (values["a"] == 1)
    assert ("c" in values) == (values.get("b") == 2)


def test_value_whose_parent_does_not_count_does_not_count():
    assert active(SPACE, {"a": 2, "b": 2, "c": "x"}) == {"a": 2}


def test_draw_depends_on_the_number_and_on_nothing_drawn_before():
    assert draw(SPACES["mnist-dcgan"], 0, 7) == draw(SPACES["mnist-dcgan"], 0, 7)
    assert draw(SPACES["mnist-dcgan"], 0, 7) != draw(SPACES["mnist-dcgan"], 0, 8)
    smaller = {"optim.lr": SPACES["mnist-dcgan"]["optim.lr"]}
    assert draw(smaller, 0, 7)["optim.lr"] == draw(SPACES["mnist-dcgan"], 0, 7)["optim.lr"]


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 5), min_size=2, max_size=2), max_size=12))
def test_pareto_front_equals_brute_force(rows):
    found = pareto_front(dict(enumerate(rows)))
    expected = [
        i for i, (x, y) in enumerate(rows) if not any((a <= x and b < y) or (a < x and b <= y) for a, b in rows)
    ]
    assert found == expected


def test_best_first_leaves_out_what_is_not_finite_and_keeps_order_among_equals():
    assert best_first({3: [1.0], 1: [math.inf], 2: [1.0], 0: [0.5], 4: [math.nan]}) == [0, 2, 3]


def scored(**values: float) -> list[Score]:
    def protocol(metric: str) -> Protocol:
        return Protocol(metric=metric, data="digits", split="test", data_digest="0", num_samples=2, num_seeds=1)

    return [Score(metric, value, 0.0, protocol(metric)) for metric, value in values.items()]


def test_objectives_are_made_small_whichever_way_a_metric_is_better():
    assert objectives(scored(fid=3.0, recall=0.4), ["fid", "recall"], "") == [3.0, -0.4]


def test_trial_that_misses_its_constraint_is_worse_than_any_that_keeps_it():
    missed = objectives(scored(fid=1.0, recall=0.39), ["fid"], "recall>=0.4")
    by_far = objectives(scored(fid=1.0, recall=0.1), ["fid"], "recall>=0.4")
    kept = objectives(scored(fid=9e5, recall=0.4), ["fid"], "recall>=0.4")
    assert kept == [9e5]
    assert kept < missed < by_far


@pytest.mark.parametrize("scores", [{"fid": math.nan, "recall": 1.0}, {"fid": 1.0, "recall": math.nan}])
def test_objective_that_is_no_number_is_infinite(scores):
    assert objectives(scored(**scores), ["fid"], "recall>=0.4") == [math.inf]


def test_constraint_is_metric_sign_and_bound():
    assert parse_constraint("recall>=0.4") == ("recall", 1.0, 0.4)
    assert parse_constraint(" kid <= 1e-2 ") == ("kid", -1.0, 0.01)


@pytest.mark.parametrize("text", ["recall>0.4", "recall>=", "recall>=much", "0.4<=recall", "recall>=nan", "fid<=inf"])
def test_constraint_of_another_form_is_refused(text):
    message = f"search.constraint={text!r} is not of the form METRIC>=NUMBER, e.g. recall>=0.4"
    assert refused(parse_constraint, text) == message


def test_metrics_are_refused_under_the_field_that_names_them():
    assert refused(Search, metric=("fidd",)).startswith("search.metric: unknown metric 'fidd'; choose from ")
    assert refused(Search, metric=("fidd",)).endswith("(did you mean 'fid'?)")
    assert refused(Search, constraint="recal>=1").startswith("search.constraint: unknown metric 'recal'; ")
    message = refused(racing_config, tiny_config(), Search(metric=("accuracy",)))
    assert message.startswith("search.metric: unknown metric of a generator 'accuracy'; ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "unknown domain ''; choose from choice, int, log, uniform"),
        ("logg 1 2", "unknown domain 'logg'; choose from choice, int, log, uniform (did you mean 'log'?)"),
        ("log 0 1", "log 0 1 must be above 0: a logarithm has no other values"),
        ("log -1 1", "log -1 1 must be above 0: a logarithm has no other values"),
        ("uniform 2 1", "uniform 2 1 is empty: the lowest value must be below the highest"),
        ("int 3 3", "int 3 3 is empty: the lowest value must be below the highest"),
        ("uniform 0 Infinity", "uniform 0 Infinity is empty: the lowest value must be below the highest"),
        ("int 1 2.5", "int 1 2.5 needs a lowest and a highest whole number, e.g. 'int 1 10'"),
        ("log 1", "log 1 needs a lowest and a highest number, e.g. 'log 1 10'"),
        ("uniform a b", "uniform a b needs a lowest and a highest number, e.g. 'uniform 1 10'"),
        ("uniform False True", "uniform false true needs a lowest and a highest number, e.g. 'uniform 1 10'"),
        ("choice", "a choice needs at least one value, e.g. 'choice 1 2 4'"),
        ("int 1 2 if model.width", "the condition 'if model.width' is not of the form 'if FIELD=VALUE'"),
        ("int 1 2 if", "the condition 'if' is not of the form 'if FIELD=VALUE'"),
    ],
)
def test_domain_that_cannot_be_is_refused(text, message):
    assert refused(Domain.parse, text) == message
    assert refused(space_of, {}, [f"optim.lr={text}"]) == f"search.space: optim.lr: {message}"


def test_space_is_added_to_replaced_and_taken_from():
    base = {"optim.lr": Domain("log", (1e-4, 1e-2)), "objective.gamma": Domain("log", (0.1, 1.0))}
    found = space_of(base, ["optim.lr=choice 1e-3", "objective.gamma=fixed", "model.width=int 8 16"])
    assert found == {"optim.lr": Domain("choice", (1e-3,)), "model.width": Domain("int", (8, 16))}


def test_space_of_a_file_equals_that_of_its_pairs(tmp_path):
    path = tmp_path / "space.json"
    space = SPACES["digits-dcgan"]
    path.write_text(json.dumps({name: str(domain) for name, domain in space.items()}))
    assert space_of({}, [str(path)]) == space == space_of({}, list(pairs(space)))


@pytest.mark.parametrize("text", ["no file", "[1, 2]", "{", '{"optim.lr": 3}'])
def test_file_that_is_no_space_is_refused(tmp_path, text):
    path = tmp_path / "space.json"
    if text != "no file":
        path.write_text(text)
    message = refused(space_of, {}, [str(path)])
    assert message.startswith(f"search.space={str(path)!r} is neither FIELD=DOMAIN nor a JSON file of such pairs: ")


def test_field_that_is_not_in_the_space_cannot_be_taken_out():
    message = refused(space_of, {"optim.lr": Domain("log", (1e-4, 1e-2))}, ["optim.lrr=fixed"])
    assert message == (
        "search.space: unknown field of the space 'optim.lrr'; choose from optim.lr (did you mean 'optim.lr'?)"
    )


@pytest.mark.parametrize("name", PRESETS)
def test_space_of_every_preset_fits_its_config(name):
    config = preset(name)
    check_space(SPACES[name], config)
    for number in range(20):
        apply(config, draw(SPACES[name], 0, number))


@pytest.mark.parametrize(
    ("name", "metric"),
    [("digits-vae", "elbo"), ("mnist-rae", "fid"), ("digits-vae-gan", "fid"), ("digits-dcgan", "fid")],
)
def test_search_asks_for_elbo_only_where_a_bound_of_the_likelihood_is_trained(name, metric):
    assert objective_metrics(preset(name), Search(name="s")) == (metric,)


def test_unknown_field_of_a_space_names_the_nearest():
    message = refused(check_space, {"optim.lrr": Domain("log", (1e-4, 1e-2))}, tiny_config())
    assert message.startswith("search.space: optim.lrr=0.0001 cannot be tried: unknown field 'optim.lrr'; choose from ")
    assert message.endswith("(did you mean 'optim.lr'?)")


def test_value_that_the_config_refuses_is_named():
    message = refused(check_space, {"optim.betas.0": Domain("choice", (0.5, 1.5))}, tiny_config())
    assert message == (
        "search.space: optim.betas.0=1.5 cannot be tried: "
        "optim.betas=(1.5, 0.99) must both lie in [0, 1), e.g. 0.5 0.999"
    )


def test_part_of_a_field_that_has_none_is_refused():
    message = refused(apply, tiny_config(), {"optim.betas.2": 0.5})
    assert message == "field 'optim.betas.2' has no part '2'; optim.betas is [0.5, 0.99]"
    assert refused(apply, tiny_config(), {"optim.lr.0": 0.5}) == (
        "field 'optim.lr.0' has no part '0'; optim.lr is 0.001"
    )


def test_empty_space_is_refused():
    assert refused(check_space, {}, tiny_config()) == (
        "the search space is empty; give one, e.g. --search.space optim.lr='log 1e-4 1e-2'"
    )


LR = Domain("log", (1e-4, 1e-2))
WIDTH = Domain("choice", (8, 16))


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (
            {"optim.lr": Domain("log", (1e-4, 1e-2), when=("model.width", 8))},
            "search.space: optim.lr depends on 'model.width', which is not in the space",
        ),
        (
            {"optim.lr": Domain("log", (1e-4, 1e-2), when=("model.width", 9)), "model.width": WIDTH},
            "search.space: optim.lr counts if model.width=9, which 'choice 8 16' never gives",
        ),
        (
            {"model.width": Domain("choice", (8, 16), when=("model.width", 8))},
            "search.space: model.width depends on itself; take out one of the conditions",
        ),
        (
            {
                "model.width": Domain("choice", (8,), when=("model.latent_dim", 8)),
                "model.latent_dim": Domain("choice", (8,), when=("model.width", 8)),
            },
            "search.space: model.width depends on itself; take out one of the conditions",
        ),
        (
            {"eval.num_samples": Domain("int", (10, 20))},
            "search.space: eval.num_samples cannot be searched: scores under different protocols cannot be compared; "
            "take it out",
        ),
    ],
)
def test_space_that_cannot_be_searched_is_refused(space, message):
    assert refused(check_space, space, tiny_config()) == message


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_trials": 0}, "search.num_trials=0 must be at least 1"),
        ({"reduction_factor": 1}, "search.reduction_factor=1 must be at least 2"),
        ({"seed": -1}, "search.seed=-1 must be at least 0"),
        ({"gpu_fraction": 0.0}, "search.gpu_fraction=0.0 must lie in (0, 1], e.g. 0.25"),
        (
            {"scheduler": "pbt", "algorithm": "tpe"},
            "search.scheduler='pbt' makes its own values after the first; use search.algorithm=random",
        ),
        (
            {"scheduler": "pb2", "num_trials": 1},
            "search.scheduler='pb2' needs a population; set search.num_trials to 4 or more",
        ),
        (
            {"algorithm": "nsga2"},
            "search.algorithm=nsga2 compares finished trials; use search.scheduler=fifo",
        ),
        (
            {"metric": ("fid", "recall")},
            "search.metric=fid recall: a scheduler needs one number to go by; "
            "use search.scheduler=fifo, or one metric and search.constraint",
        ),
        (
            {"metric": ("fid", "recall"), "scheduler": "fifo", "algorithm": "grid"},
            "search.metric=fid recall: a scheduler needs one number to go by; "
            "use search.scheduler=fifo, or one metric and search.constraint",
        ),
    ],
)
def test_search_that_cannot_work_is_refused(fields, message):
    assert refused(Search, **fields) == message


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5000), st.integers(0, 6000))
def test_racing_trial_is_scored_at_least_once_and_never_promoted(num_steps, report_every):
    base = tiny_config()
    config = apply(base, {"train.num_steps": num_steps})
    racing = racing_config(config, Search(report_every=report_every, constraint="recall>=0.4", num_samples=50))
    assert 1 <= racing.train.checkpoint_every <= num_steps
    assert racing.eval.metrics == ("fid", "recall")
    assert (racing.eval.num_samples, racing.eval.num_seeds, racing.eval.promote) == (50, 1, False)
