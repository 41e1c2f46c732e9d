"""Pictures of a study: one figure a question, and a page that holds them all."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullFormatter

from genray.importance import MIN_TRIALS, importance, place
from genray.search import pareto_front
from genray.space import Domain
from genray.study import Settings, Study, TrialRecord, metric_names, ranking
from genray.study_axis import MetricAxis
from genray.study_table import better_is, fmt, natural

Trials = Mapping[int, TrialRecord]
COLOURS = {"finished": "#1f5fa8", "pruned": "#8a8a8a", "stopped": "#d98200", "failed": "#b3261e", "running": "#2e8b57"}
MARKERS = {"finished": "o", "pruned": "v", "stopped": "s", "failed": "X", "running": ">"}
BEST = "#7b1fa2"
_STYLE: Any = {"font.size": 11.0, "axes.titlesize": 12.0, "axes.grid": True, "grid.alpha": 0.25, "figure.dpi": 110}


def history(settings: Settings, trials: Trials) -> Figure:
    """The first metric of every trial in order of end, and the best so far."""
    name = metric_names(settings)[0]
    ended = sorted((t for t in _race(trials) if t.status != "running"), key=lambda t: (t.ended, t.number))
    values = [natural(settings, trial.best) for trial in ended]
    figure, axes = _figure(9, 5, f"Best {name} of each trial, in order of end")
    axis = MetricAxis(values, better_is(name))
    axis.apply(axes, name)
    for status, marker in MARKERS.items():
        at = [i for i, trial in enumerate(ended) if trial.status == status]
        if at:
            shown = [axis.place(values[i]) for i in at]
            axes.scatter([i + 1 for i in at], shown, marker=marker, color=COLOURS[status], s=42, label=status, zorder=3)
    so_far = _best_so_far(values, better_is(name))
    axes.step(range(1, len(ended) + 1), so_far, where="post", color=BEST, lw=2, label="best so far")
    axes.set_xlabel("trials ended")
    axes.set_xlim(0.4, max(len(ended), 1) + 0.6)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.explain(axes, "no score, constraint missed, or far outside")
    _legend(axes)
    return figure


def importances(settings: Settings, trials: Trials) -> Figure:
    """How much each parameter explains of the order of the trials."""
    found = importance(settings.space, trials)
    num = len(settings.space)
    figure, axes = _figure(9, 2.1 + 0.45 * num if found else 1.5, "Importance of each parameter")
    if found is None:
        scored = len(ranking(trials))
        return _empty(figure, axes, f"too few trials: {scored} with a score, at least {MIN_TRIALS} are needed")
    names = list(reversed(found.shares))
    shares = [found.shares[name] for name in names]
    bars = axes.barh(names, shares, color=COLOURS["finished"])
    axes.bar_label(bars, [f"{share:.0%}" for share in shares], padding=4)
    axes.set_xlim(0, max(0.1, max(shares) * 1.15))
    axes.xaxis.set_major_formatter("{x:.0%}")
    axes.grid(axis="y", visible=False)
    said = f"a forest predicts {max(0.0, found.explained):.0%} of the order of unseen trials"
    doubt = "" if found.explained > 0.1 else ":\nthese shares say little"
    axes.set_xlabel(f"share of what is explained, {found.num_trials} trials\n{said}{doubt}")
    return figure


def parallel(settings: Settings, trials: Trials) -> Figure:
    """Every trial as a line through its values, coloured by the first metric."""
    name, space = metric_names(settings)[0], settings.space
    drawn = list(reversed(ranking(trials)))
    figure, axes = _figure(max(8.0, 1.75 * (len(space) + 1.4)), 5.6, "Values of each trial; dark is better")
    if not drawn:
        return _empty(figure, axes, "no trial has a score yet")
    values = [natural(settings, trial.best) for trial in drawn]
    axis = MetricAxis(values, better_is(name))
    colours = matplotlib.colormaps["viridis" if better_is(name) == "lower" else "viridis_r"]
    norm: Normalize = (LogNorm if axis.log else Normalize)(axis.low, axis.high, clip=True)
    source = np.random.default_rng(0)
    for trial, value in zip(drawn, values, strict=True):
        heights = [_height(domain, trial.values.get(field), source) for field, domain in space.items()]
        heights.append(float(norm(axis.place(value))))
        colour, best = colours(norm(axis.place(value))), trial is drawn[-1]
        axes.plot(heights, color=colour, lw=2.6 if best else 1.2, alpha=1.0 if best else 0.75, zorder=3 if best else 2)
    for at, domain in enumerate(space.values()):
        _axis_labels(axes, at, [(_height(domain, v), _short(v)) for v in _ticks(domain)])
        if domain.when:
            axes.text(at, -0.12, "not used", ha="center", va="top", fontsize=9, color="#555555")
    ends = [axis.low, (axis.low * axis.high) ** 0.5 if axis.log else (axis.low + axis.high) / 2, axis.high]
    _axis_labels(axes, len(space), [(float(norm(v)), axis.text(v)) for v in ends])
    axes.set_xticks(range(len(space) + 1), [*map(_wrapped, space), _wrapped(name)])
    axes.tick_params(axis="x", length=0, pad=8)
    axes.set_xlim(-0.3, len(space) + 0.45)
    axes.set_ylim(-0.18 if any(domain.when for domain in space.values()) else -0.06, 1.06)
    axes.set_yticks([])
    axes.grid(visible=False)
    for side in axes.spines.values():
        side.set_visible(False)
    bar = figure.colorbar(ScalarMappable(norm, colours), ax=axes, fraction=0.03, pad=0.02)
    if axis.log:
        bar.ax.yaxis.set_major_formatter(lambda v, _: fmt(v))
        bar.ax.yaxis.set_minor_formatter(NullFormatter())
    bar.set_label(f"{name} ({better_is(name)} is better)")
    return figure


def curves(settings: Settings, trials: Trials) -> Figure:
    """The first metric of every trial against its steps."""
    name = metric_names(settings)[0]
    drawn = [trial for trial in _race(trials) if trial.reports]
    figure, axes = _figure(9, 5, f"{name} of every trial as it trained")
    if not drawn:
        return _empty(figure, axes, "no trial has a score yet")
    axis = MetricAxis([natural(settings, r) for t in drawn for r in t.reports], better_is(name))
    axis.apply(axes, name)
    best = next(iter(ranking(trials)), None)
    for trial in drawn:
        steps = [report.step for report in trial.reports]
        values = [axis.place(natural(settings, report)) for report in trial.reports]
        first = trial is best
        colour = BEST if first else COLOURS[trial.status]
        axes.plot(
            steps, values, color=colour, lw=2.4 if first else 1, alpha=1 if first else 0.6, zorder=4 if first else 2
        )
        axes.plot(steps[-1:], values[-1:], MARKERS[trial.status], color=colour, ms=6, zorder=5 if first else 3)
    shown = [Line2D([], [], color=COLOURS[s], marker=MARKERS[s], label=s) for s in MARKERS if _any(drawn, s)]
    if best:
        shown.append(Line2D([], [], color=BEST, lw=2.4, label=f"best: trial {best.number}"))
    axes.set_xlabel("step")
    axis.explain(axes, "not finite, constraint missed, or far outside")
    _legend(axes, shown)
    return figure


def population(settings: Settings, trials: Trials) -> Figure:
    """Whose weights each member of a population took over, and its values from then on."""
    members = list(_race(trials))
    fields = list(settings.space)
    heights = [max(2.2, 0.42 * len(members) + 1.0), *([1.9] * len(fields))]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(9, sum(heights) + 0.6), layout="constrained")
        rows = figure.subplots(len(heights), sharex=True, gridspec_kw={"height_ratios": heights}, squeeze=False)[:, 0]
    rows[0].set_title("Weights handed over: from the donor to who took them over")
    at = {member.number: place for place, member in enumerate(members)}
    best = next(iter(ranking(trials)), None)
    palette = matplotlib.colormaps["tab10" if len(members) <= 10 else "tab20"]
    colours = {member.number: palette(i % palette.N) for i, member in enumerate(members)}
    for member in members:
        _member(rows[0], member, at, colours)
    labels = [f"trial {m.number}{' (best)' if m is best else ''}" for m in members]
    rows[0].set_yticks(range(len(members)), labels)
    rows[0].set_ylim(len(members) - 0.4, -0.6)
    for axes, field in zip(rows[1:], fields, strict=True):
        _values_over_steps(axes, field, settings.space[field], members, colours, best)
    rows[-1].set_xlabel("step")
    return figure


def pareto(settings: Settings, trials: Trials) -> Figure:
    """The first two metrics of every trial, and those trials that no other beats in both."""
    first, second = metric_names(settings)[:2]
    scored = {t.number: t.reports[-1] for t in _race(trials) if t.reports and _finite(t.reports[-1].objective[:2])}
    figure, axes = _figure(8, 5.6, f"{first} and {second} at the end of each trial")
    if not scored:
        return _empty(figure, axes, "no trial has both scores yet")
    points = {n: (natural(settings, report, 0), natural(settings, report, 1)) for n, report in scored.items()}
    across, up = (MetricAxis([p[i] for p in points.values()], better_is(m)) for i, m in enumerate((first, second)))
    across.apply(axes, first, "x")
    up.apply(axes, second)
    shown = {n: (across.place(x), up.place(y)) for n, (x, y) in points.items()}
    for status in MARKERS:
        own = np.array([shown[n] for n in shown if trials[n].status == status])
        if len(own):
            axes.scatter(
                own[:, 0], own[:, 1], marker=MARKERS[status], color=COLOURS[status], s=38, alpha=0.8, label=status
            )
    front = sorted((shown[n], n) for n in pareto_front({n: r.objective[:2] for n, r in scored.items()}))
    axes.plot(*zip(*(p for p, _ in front), strict=True), "o-", color=BEST, mfc="none", ms=11, lw=1.6, label="front")
    left, last = better_is(first) == "lower", math.inf
    for point, number in front:
        height = float(axes.transAxes.inverted().transform(axes.transData.transform(point))[1])
        if abs(height - last) > 0.05:  # a number on top of a number says nothing
            where: Any = {"ha": "right", "xytext": (-9, 0)} if left else {"ha": "left", "xytext": (9, 0)}
            axes.annotate(f"{number}", point, va="center", textcoords="offset points", color=BEST, **where)
            last = height
    _legend(axes)
    return figure


def kinds(settings: Settings) -> dict[str, Callable[[Settings, Trials], Figure]]:
    """The figures that say something of such a study, by name."""
    made: dict[str, Callable[[Settings, Trials], Figure]] = {"history": history, "curves": curves}
    made |= {"importance": importances, "parallel": parallel}
    if settings.search.populates:
        made["population"] = population
    if len(metric_names(settings)) > 1:
        made["pareto"] = pareto
    return made


def write(study: Study, directory: Path) -> list[Path]:
    """Every figure as PNG, and `index.html` that holds all of them; what was written."""
    from genray import study_page

    settings, trials = study.settings, study.trials()
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, draw in kinds(settings).items():
        with matplotlib.rc_context(_STYLE):
            draw(settings, trials).savefig(directory / f"{name}.png")
        paths.append(directory / f"{name}.png")
    page = directory / "index.html"
    page.write_text(study_page.html(settings, trials, paths), encoding="utf-8")
    return [*paths, page]


def _figure(width: float, height: float, title: str) -> tuple[Figure, Axes]:
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.add_subplot()
        axes.set_title(title)
    return figure, axes


def _empty(figure: Figure, axes: Axes, text: str) -> Figure:
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes)
    return figure


def _legend(axes: Axes, handles: list[Line2D] | None = None) -> None:
    found = handles or axes.get_legend_handles_labels()[0]
    if found:
        axes.legend(handles=found, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=len(found), frameon=False)


def _race(trials: Trials) -> list[TrialRecord]:
    return [trial for trial in trials.values() if trial.phase == "race"]


def _any(trials: Sequence[TrialRecord], status: str) -> bool:
    return any(trial.status == status for trial in trials)


def _finite(values: Sequence[float]) -> bool:
    return all(map(math.isfinite, values))


def _best_so_far(values: Sequence[float], direction: str) -> list[float]:
    found, best = [], math.nan
    for value in values:
        if math.isfinite(value) and not (value >= best if direction == "lower" else value <= best):
            best = value
        found.append(best)
    return found


def _height(domain: Domain, value: Any, source: np.random.Generator | None = None) -> float:
    """Where a value is drawn on its parallel axis, in [0, 1]; lines of one choice lie a little apart."""
    if value is None:
        return -0.1
    spread = float(source.uniform(-0.02, 0.02)) if source and domain.kind in ("choice", "int") else 0.0
    ends = (0, max(1, len(domain.values) - 1)) if domain.kind == "choice" else [place(domain, v) for v in domain.values]
    return (place(domain, value) - ends[0]) / (ends[1] - ends[0]) + spread


def _ticks(domain: Domain) -> list[Any]:
    if domain.kind != "log":
        return domain.points(3)
    low, high = domain.values
    powers = [10.0**p for p in range(math.ceil(math.log10(low) + 0.15), math.floor(math.log10(high) - 0.15) + 1)]
    return [low, *powers, high]


def _axis_labels(axes: Axes, at: int, ticks: Sequence[tuple[float, str]]) -> None:
    axes.plot([at, at], [0, 1], color="#333333", lw=1.2, zorder=1)
    for height, text in ticks:
        axes.plot([at - 0.03, at], [height, height], color="#333333", lw=1, zorder=1)
        box = {"facecolor": "white", "alpha": 0.8, "pad": 0.8, "edgecolor": "none"}
        axes.text(at - 0.05, height, text, ha="right", va="center", fontsize=9.5, bbox=box, zorder=6)


def _member(axes: Axes, member: TrialRecord, at: Mapping[int, int], colours: Mapping[int, Any]) -> None:
    """The life of one member as a line, with an arrow for every time it took over weights."""
    y = at[member.number]
    end = max([member.step, *(step for step, _ in member.lineage)])
    axes.plot([0, end], [y, y], color=colours[member.number], lw=2.5, zorder=2)
    axes.plot([end], [y], MARKERS[member.status], color=colours[member.number], ms=8, zorder=3)
    for step, donor in member.lineage:
        if donor in at:
            arrow = {"arrowstyle": "-|>", "color": colours[donor], "lw": 1.6, "shrinkA": 0, "shrinkB": 2}
            axes.annotate("", (step, y), xytext=(step, at[donor]), arrowprops=arrow, zorder=4)


def _values_over_steps(
    axes: Axes,
    field: str,
    domain: Domain,
    members: Sequence[TrialRecord],
    colours: Mapping[int, Any],
    best: TrialRecord | None,
) -> None:
    for member in members:
        shown = [(step, values[field]) for step, values in member.history if field in values]
        known = [(step, place(domain, value) if domain.kind == "choice" else value) for step, value in shown]
        if known:
            steps, values = zip(*known, (max(member.step, known[-1][0]), known[-1][1]), strict=True)
            axes.step(
                steps, values, where="post", color=colours[member.number], lw=2.8 if member is best else 1.5, alpha=0.9
            )
    axes.set_title(field, loc="left", fontsize=11)
    if domain.kind == "choice":
        axes.set_yticks(range(len(domain.values)), [_short(v) for v in domain.values])
        axes.set_ylim(-0.4, len(domain.values) - 0.6)
    elif domain.kind == "int":
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    elif domain.kind == "log":
        low, high = domain.values
        axes.set_yscale("log")
        axes.set_ylim(low / 1.2, high * 1.2)
        axes.set_yticks(_ticks(domain), [_short(v) for v in _ticks(domain)])
        axes.yaxis.set_minor_formatter(NullFormatter())


def _short(value: Any) -> str:
    text = fmt(value)
    return text if len(text) <= 12 else text[:11] + "…"


def _wrapped(name: str) -> str:
    """A dotted name over several lines."""
    section, _, rest = name.partition(".")
    return (f"{section}.\n" + rest.replace("_", "_\n")) if rest else name
