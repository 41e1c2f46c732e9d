"""Pictures and page of a study: what they show is what its record says."""

import base64
import math
import re
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from made_studies import journal, population, raced, report, settings_of, started
from matplotlib.colors import to_hex

from genray import study_plots, study_table
from genray.importance import importance, place
from genray.search import pareto_front
from genray.space import Domain
from genray.study import Study, ranking

FIGURES = {"history", "curves", "importance", "parallel"}


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Study:
    return raced(tmp_path_factory.mktemp("raced"), 20)


@pytest.fixture(scope="module")
def two_metrics(tmp_path_factory) -> Study:
    return raced(tmp_path_factory.mktemp("two"), 20, metric=("fid", "recall"), scheduler="fifo")


@pytest.fixture(scope="module")
def written(study, tmp_path_factory) -> list[Path]:
    """Pictures of the study, and its page."""
    return study_plots.write(study, tmp_path_factory.mktemp("plots"))


def texts(figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]


def legend(figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


@pytest.mark.parametrize("matters", ["optim.lr", "optim.betas.0", "model.discriminator_norm"])
def test_importance_finds_the_one_parameter_that_matters(tmp_path, matters):
    settings = settings_of(tmp_path, num_trials=64)
    study = Study.claim(settings)
    domain = settings.space[matters]
    for number, values in enumerate(settings.points()):
        middle = place(domain, domain.points(3)[1]) if domain.kind != "choice" else 0
        score = 2 + (place(domain, values[matters]) - middle) ** 2
        journal(study, started(0, number, values), report(1, number, 100, score))
    found = importance(settings.space, study.trials())
    assert found.num_trials == 64
    assert sum(found.shares.values()) == pytest.approx(1)
    assert next(iter(found.shares)) == matters
    assert found.shares[matters] > 0.9
    assert found.explained > 0.5


def test_importance_of_noise_is_said_to_explain_nothing(tmp_path):
    settings = settings_of(tmp_path, num_trials=40)
    study = Study.claim(settings)
    source = np.random.default_rng(0)
    for number, values in enumerate(settings.points()):
        journal(study, started(0, number, values), report(1, number, 100, source.uniform()))
    found = importance(settings.space, study.trials())
    assert found.explained < 0.1
    assert any("these shares say little" in text for text in texts(study_plots.importances(settings, study.trials())))


def test_importance_of_too_few_trials_is_not_told(tmp_path):
    study = raced(tmp_path, 7)
    assert importance(study.settings.space, study.trials()) is None
    shown = texts(study_plots.importances(study.settings, study.trials()))
    assert "too few trials: 7 with a score, at least 8 are needed" in shown


def test_importance_is_the_same_every_time(study):
    assert importance(study.settings.space, study.trials()) == importance(study.settings.space, study.trials())


def test_history_shows_every_ended_trial_and_the_best_so_far(study):
    trials = study.trials()
    figure = study_plots.history(study.settings, trials)
    axes = figure.axes[0]
    ended = [trial for trial in trials.values() if trial.status != "running"]
    assert sum(len(points.get_offsets()) for points in axes.collections) == len(ended)
    assert legend(figure) == ["finished", "pruned", "stopped", "failed", "best so far"]
    (line,) = [line for line in axes.lines if line.get_label() == "best so far"]
    shown = np.asarray(line.get_ydata())
    assert (np.diff(shown) <= 0).all()
    assert shown[-1] == ranking(trials)[0].best.objective[0]


def test_history_puts_trials_in_order_of_their_end(tmp_path):
    study = Study.claim(settings_of(tmp_path))
    for number, end in enumerate((3, 1, 2)):
        journal(study, started(0, number, {"optim.lr": 1e-3}), report(end, number, 100, 10.0 + number))
        journal(study, (end, number, "finished", {}))
    (points,) = study_plots.history(study.settings, study.trials()).axes[0].collections
    assert points.get_offsets()[:, 1].tolist() == [11.0, 12.0, 10.0]


def test_metric_that_should_be_large_is_shown_as_it_is(tmp_path):
    study = Study.claim(settings_of(tmp_path, preset_name="digits-classifier"))
    for number, accuracy in enumerate((0.9, 0.8, 0.95)):
        journal(study, started(0, number, {"optim.lr": 1e-3}), report(number, number, 100, -accuracy))
        journal(study, (number, number, "finished", {}))
    figure = study_plots.history(study.settings, study.trials())
    (line,) = [line for line in figure.axes[0].lines if line.get_label() == "best so far"]
    assert list(line.get_ydata()) == [0.9, 0.9, 0.95]
    assert figure.axes[0].get_ylabel() == "accuracy (higher is better)"


def test_trials_that_are_far_outside_or_have_no_score_lie_on_a_line_that_says_so(tmp_path):
    study = Study.claim(settings_of(tmp_path))
    for number, score in enumerate((2.0, 2.1, 2.2, 2.3, 1e9, math.inf)):
        journal(study, started(0, number, {"optim.lr": 1e-3}), report(number, number, 100, score))
        journal(study, (number, number, "finished", {}))
    figure = study_plots.history(study.settings, study.trials())
    shown = figure.axes[0].collections[0].get_offsets()[:, 1]
    assert shown[:4].tolist() == [2.0, 2.1, 2.2, 2.3]
    assert shown[4] == shown[5] < 1e4
    assert "at this line: no score, constraint missed, or far outside" in texts(figure)


def test_curves_have_one_line_a_trial_and_mark_the_best(study):
    trials = study.trials()
    figure = study_plots.curves(study.settings, trials)
    best = ranking(trials)[0]
    assert f"best: trial {best.number}" in legend(figure)
    lines = [line for line in figure.axes[0].lines if to_hex(line.get_color()) == study_plots.BEST]
    assert list(lines[0].get_xdata()) == [r.step for r in best.reports]
    assert list(lines[0].get_ydata()) == [r.objective[0] for r in best.reports]
    assert len(figure.axes[0].lines) >= 2 * len(trials)


def test_parallel_has_an_axis_a_field_and_draws_the_best_last(study):
    trials = study.trials()
    figure = study_plots.parallel(study.settings, trials)
    names = [text.get_text().replace("\n", "") for text in figure.axes[0].get_xticklabels()]
    assert names == [*study.settings.space, "fid"]
    lines = [line for line in figure.axes[0].lines if len(line.get_xdata()) == len(names)]
    assert len(lines) == len(ranking(trials))
    heights = list(lines[-1].get_ydata())
    best = ranking(trials)[0].values["optim.lr"]
    assert heights[0] == pytest.approx(math.log(best / 1e-4) / math.log(5e-3 / 1e-4))
    assert heights[-1] == 0


def test_value_that_does_not_count_is_drawn_below_its_axis(tmp_path):
    study = Study.claim(settings_of(tmp_path))
    journal(study, started(0, 0, {"optim.lr": 1e-3, "model.discriminator_norm": "batch"}), report(1, 0, 100, 2.0))
    figure = study_plots.parallel(study.settings, study.trials())
    at = list(study.settings.space).index("objective.gamma")
    (line,) = [line for line in figure.axes[0].lines if len(line.get_xdata()) == len(study.settings.space) + 1]
    assert line.get_ydata()[at] < 0
    assert "not used" in texts(figure)


def test_population_has_an_arrow_for_every_exploit_and_every_value(tmp_path):
    study = population(tmp_path)
    figure = study_plots.population(study.settings, study.trials())
    arrows = [(a.xyann, a.xy) for a in figure.axes[0].texts if hasattr(a, "xyann")]
    assert sorted(arrows) == [((450, 0), (450, 3)), ((900, 0), (900, 2))]
    assert [axes.get_title(loc="left") for axes in figure.axes[1:]] == list(study.settings.space)
    third = figure.axes[1].lines[3]
    history = study.trials()[3].history
    assert list(third.get_xdata()) == [0, 450, 1500]
    assert list(third.get_ydata()) == [*(values["optim.lr"] for _, values in history), history[-1][1]["optim.lr"]]


def test_pareto_marks_the_front(two_metrics):
    trials = two_metrics.trials()
    scored = {
        n: t.reports[-1].objective for n, t in trials.items() if t.reports if math.isfinite(t.reports[-1].objective[0])
    }
    figure = study_plots.pareto(two_metrics.settings, trials)
    (line,) = [line for line in figure.axes[0].lines if line.get_label() == "front"]
    expected = sorted((scored[n][0], -scored[n][1]) for n in pareto_front(scored))
    assert list(zip(line.get_xdata(), line.get_ydata(), strict=True)) == expected
    assert len(expected) >= 2


def test_study_without_a_trial_has_every_figure(tmp_path):
    study = Study.claim(settings_of(tmp_path))
    paths = study_plots.write(study, tmp_path / "plots")
    assert {path.stem for path in paths} == FIGURES | {"index"}


def test_figures_are_those_that_say_something(study, two_metrics, tmp_path):
    assert set(study_plots.kinds(study.settings)) == FIGURES
    assert set(study_plots.kinds(two_metrics.settings)) == FIGURES | {"pareto"}
    assert set(study_plots.kinds(population(tmp_path).settings)) == FIGURES | {"population"}


def drawn_texts(figure) -> list:
    """Every text that is seen: ticks outside the range of their axis are not."""
    found = list(figure.texts)
    for axes in figure.axes:
        found += [axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label]
        found += [text for text in axes.texts if text.get_text()]
        found += axes.get_legend().get_texts() if axes.get_legend() else []
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            found += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    return [text for text in found if text.get_visible() and text.get_text().strip()]


def test_no_two_texts_of_a_figure_overlap_or_leave_it(study, two_metrics, tmp_path):
    members = population(tmp_path)
    cases = [(study, name) for name in FIGURES] + [(two_metrics, "pareto"), (members, "population")]
    for made, name in cases:
        figure = study_plots.kinds(made.settings)[name](made.settings, made.trials())
        figure.draw_without_rendering()
        boxes = [(text.get_text(), text.get_window_extent()) for text in drawn_texts(figure)]
        assert len(boxes) > 5
        for i, (text, box) in enumerate(boxes):
            assert figure.bbox.padded(1).containsx(box.x0) and figure.bbox.padded(1).containsx(box.x1), (name, text)
            assert figure.bbox.padded(1).containsy(box.y0) and figure.bbox.padded(1).containsy(box.y1), (name, text)
            assert not [other for other, b in boxes[i + 1 :] if box.padded(-1).overlaps(b.padded(-1))], (name, text)


def test_page_holds_every_picture_and_trial_and_no_address(study, written):
    *pictures, page = written
    html = page.read_text(encoding="utf-8")
    found = [base64.b64decode(data) for data in re.findall(r'src="data:image/png;base64,([^"]+)"', html)]
    assert found == [path.read_bytes() for path in pictures]
    assert re.findall(r'(?:src|href)="(?!data:)', html) == []
    assert "<script" not in html
    rows = html[html.index("<h2>Trials</h2>") : html.index("<h2>Settings</h2>")].count("<tr>") - 1
    assert rows == len(study.trials())
    assert "log 0.01 10.0 if model.discriminator_norm=" in unescape(html)


def test_page_escapes_what_others_wrote(written):
    html = written[-1].read_text(encoding="utf-8")
    assert "ConfigError: &lt;b&gt;broke&lt;/b&gt; &amp; [bold]fell[/bold]" in html
    assert "<b>" not in html


def test_values_have_the_shortest_names_that_tell_them_apart():
    assert study_table.values_text({"optim.lr": 1.23456e-3, "model.width": 8}) == "lr=0.001235 width=8"
    assert study_table.values_text({"a.lr": 1.0, "b.lr": 2.0}) == "a.lr=1 b.lr=2"


def test_row_of_a_trial_that_misses_its_constraint_says_so(tmp_path):
    study = Study.claim(settings_of(tmp_path, constraint="recall>=0.4"))
    journal(study, started(0, 0, {"optim.lr": 1e-3}), report(1, 0, 100, 1e6 + 2))
    (row,) = study_table.rows(study.settings, study.trials())
    named = dict(zip(study_table.head(study.settings), row, strict=True))
    assert (named["fid"], named["reason"]) == ("-", "constraint missed")


def test_summary_counts_and_tells_what_runs(study):
    lines = study_table.summary(study.settings, study.trials(), now=study.trials()[19].reports[-1].time + 7200)
    assert lines[0] == "20 of 20 trials begun: 1 running, 13 finished, 4 pruned, 1 stopped, 1 failed"
    assert lines[1] == "trial 19 runs: step 150 of 1500, last heard of 2 hours ago"
    best = ranking(study.trials())[0]
    assert lines[2] == f"best so far: trial {best.number}, fid {best.best.objective[0]:.4g} at step 1500"


def test_place_is_where_an_axis_shows_a_value():
    assert place(Domain("log", (1e-4, 1.0)), 1e-2) == pytest.approx(math.log(1e-2))
    assert place(Domain("choice", ("a", "b")), "b") == 1
    assert math.isnan(place(Domain("choice", ("a", "b")), "c"))
    assert place(Domain("int", (1, 5)), 3) == 3
