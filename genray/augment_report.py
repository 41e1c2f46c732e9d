"""What an experiment on generated images says: arms over seeds, paired tests, and a sentence."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import stats

METRICS = ("accuracy", "recall")
SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class Arm:
    """One ratio at one fraction, its values over seeds, and how they compare with those of ratio 0."""

    fraction: float
    ratio: float
    values: Mapping[str, tuple[float, ...]]
    """By metric, in the order of the seeds."""
    gain: float = 0.0
    """Mean difference of accuracy to the baseline, seed by seed."""
    gain_error: float = 0.0
    """Half the width of its 95 % interval (Student's t)."""
    p: float = 1.0
    """Of the paired t-test, after Holm's correction for all arms that are compared."""

    def interval(self, metric: str) -> tuple[float, float]:
        """Mean, and half the width of its 95 % interval."""
        return _interval(self.values[metric])


def compared(arms: Sequence[Arm]) -> list[Arm]:
    """`arms` with their gains over the baseline of their fraction, and Holm's corrected p (1979)."""
    base = {arm.fraction: np.array(arm.values["accuracy"]) for arm in arms if arm.ratio == 0}
    found, ps = [], []
    for arm in arms:
        change = np.array(arm.values["accuracy"]) - base[arm.fraction]
        if arm.ratio == 0:
            found.append(arm)
            continue
        gain, error = _interval(tuple(change))
        same = np.ptp(change) == 0  # the test divides by the spread
        ps.append(float(change[0] == 0) if same else float(stats.ttest_rel(change, np.zeros_like(change)).pvalue))
        found.append(replace(arm, gain=gain, gain_error=error))
    corrected = iter(_holm(ps))
    return [arm if arm.ratio == 0 else replace(arm, p=next(corrected)) for arm in found]


def verdict(arms: Sequence[Arm]) -> str:
    """One sentence: whether generated images changed the accuracy by more than chance, and where."""
    tested = [arm for arm in arms if arm.ratio > 0]
    better = [arm for arm in tested if arm.p < SIGNIFICANCE and arm.gain > 0]
    worse = [arm for arm in tested if arm.p < SIGNIFICANCE and arm.gain < 0]
    seeds = len(arms[0].values["accuracy"])
    if better:
        best = max(better, key=lambda arm: arm.gain)
        also = f"; {len(worse)} of {len(tested)} arms lose" if worse else ""
        return (
            f"Gain: with {best.fraction:.0%} of the real images, {best.ratio:g} generated for each bring "
            f"{best.gain:+.2%} ± {best.gain_error:.2%} accuracy (p = {best.p:.2g}, {seeds} seeds){also}."
        )
    if worse:
        worst = min(worse, key=lambda arm: arm.gain)
        return (
            f"No gain: no arm is better than real images alone, and with {worst.fraction:.0%} of them {worst.ratio:g} "
            f"generated for each cost {worst.gain:+.2%} ± {worst.gain_error:.2%} (p = {worst.p:.2g}, {seeds} seeds)."
        )
    best = max(tested, key=lambda arm: arm.gain)
    return (
        f"No gain: no arm differs from real images alone by more than chance; the largest difference is "
        f"{best.gain:+.2%} ± {best.gain_error:.2%} (p = {best.p:.2g}, {seeds} seeds)."
    )


def write_report(folder: Path, arms: Sequence[Arm]) -> str:
    """Puts `report.md`, `augment.json` and `augment.png` into `folder`; the verdict."""
    folder.mkdir(parents=True, exist_ok=True)
    sentence = verdict(arms)
    rows = ["| real images | generated for each | accuracy | macro recall | gain | p |", "| ---: " * 6 + "|"]
    for arm in arms:
        shares = " | ".join(f"{mean:.2%} ± {error:.2%}" for mean, error in map(arm.interval, METRICS))
        compared_to = f"{arm.gain:+.2%} ± {arm.gain_error:.2%} | {arm.p:.2g}" if arm.ratio else "baseline | "
        rows.append(f"| {arm.fraction:.0%} | {arm.ratio:g} | {shares} | {compared_to} |")
    note = (
        "± is half a 95 % interval of Student's t over seeds of training, on one draw of the real images and one "
        "generator; p of the paired t-test against the baseline, Holm-corrected over all arms."
    )
    (folder / "report.md").write_text("\n".join([sentence, "", *rows, "", note, ""]))
    values = [{**vars(arm), "values": dict(arm.values)} for arm in arms]
    (folder / "augment.json").write_text(json.dumps({"verdict": sentence, "arms": values}, indent=2) + "\n")
    _plot(arms).savefig(folder / "augment.png", dpi=110)
    return sentence


def _interval(values: Sequence[float]) -> tuple[float, float]:
    error = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)
    return float(np.mean(values)), error


def _holm(ps: Sequence[float]) -> list[float]:
    """Corrected p-values, in the order of `ps`."""
    corrected: NDArray[np.float64] = np.empty(len(ps))
    highest = 0.0
    for rank, index in enumerate(np.argsort(ps, kind="stable")):
        highest = max(highest, min(1.0, (len(ps) - rank) * ps[index]))
        corrected[index] = highest
    return [float(p) for p in corrected]


def _plot(arms: Sequence[Arm]) -> Figure:
    figure = Figure((7, 4.5), layout="constrained")
    axes = figure.subplots()
    for fraction in dict.fromkeys(arm.fraction for arm in arms):
        own = sorted((arm for arm in arms if arm.fraction == fraction), key=lambda arm: arm.ratio)
        means, errors = zip(*(arm.interval("accuracy") for arm in own), strict=True)
        label = f"{fraction:.0%} of the real images"
        axes.errorbar([arm.ratio for arm in own], means, errors, marker="o", capsize=4, label=label)
    axes.set(xlabel="generated images for each real one", ylabel="accuracy, 95 % interval")
    axes.legend()
    axes.grid(alpha=0.25)
    return figure
