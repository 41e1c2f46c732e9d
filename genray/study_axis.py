"""The axis of a metric in the pictures of a study."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from genray.study_table import fmt


class MetricAxis:
    """The range of a metric that is worth showing; what lies beyond, or is no number, is put on its worse edge."""

    def __init__(self, values: Sequence[float], direction: str) -> None:
        finite = np.array([v for v in values if math.isfinite(v)] or [0.0])
        self._lower_is_better = direction == "lower"
        low, high = float(finite.min()), float(finite.max())
        self.log = low > 0 and high > 20 * low
        near = np.log(finite) if self.log else finite
        quarter, half, three = np.percentile(near, (25, 50, 75))
        reach = 2 * max(float(three - quarter), 1e-9 * max(1.0, abs(float(half))))
        if self._lower_is_better:
            bound = float(three) + reach
            high = min(high, math.exp(min(bound, 700.0)) if self.log else bound)
        else:
            bound = float(quarter) - reach
            low = max(low, math.exp(bound) if self.log else bound)
        if not low < high:
            low, high = low - 0.05 * (abs(low) or 1), high + 0.05 * (abs(high) or 1)
        self.low, self.high = low, high
        self._moved = any(not (math.isfinite(v) and low <= v <= high) for v in values)
        self._direction = direction

    def place(self, value: float) -> float:
        """`value`, or the edge that stands for it."""
        worst = self.high if self._lower_is_better else self.low
        return min(self.high, max(self.low, value)) if math.isfinite(value) else worst

    def text(self, value: float) -> str:
        """`value`, and that it stands for all beyond where it is the edge of a range that was cut."""
        if not (self._moved and value == (self.high if self._lower_is_better else self.low)):
            return fmt(value)
        return f"{'≥' if self._lower_is_better else '≤'} {fmt(value)}"

    def apply(self, axes: Axes, name: str, which: str = "y") -> None:
        """Scale, range and label of one axis of `axes`."""
        pad = (self.high / self.low) ** 0.06 if self.log else 0.06 * (self.high - self.low)
        limits = (self.low / pad, self.high * pad) if self.log else (self.low - pad, self.high + pad)
        axes.set(
            **{
                f"{which}scale": "log" if self.log else "linear",
                f"{which}lim": limits,
                f"{which}label": f"{name} ({self._direction} is better)",
            }
        )
        if self.log:
            own = axes.yaxis if which == "y" else axes.xaxis
            own.set_major_formatter(lambda v, _: fmt(v))
            own.set_minor_formatter(lambda v, _: fmt(v) if self.high < 30 * self.low and _leads(v) else "")

    def explain(self, axes: Axes, what: str) -> None:
        """A line at the edge, if anything was put there."""
        if self._moved:
            at = self.high if self._lower_is_better else self.low
            axes.axhline(at, color="#b3261e", lw=0.8, ls=":")
            axes.annotate(
                f"at this line: {what}",
                (1.0, at),
                xycoords=("axes fraction", "data"),
                xytext=(-4, -4 if self._lower_is_better else 4),
                textcoords="offset points",
                ha="right",
                va="top" if self._lower_is_better else "bottom",
                fontsize=9,
                color="#b3261e",
            )


def _leads(value: float) -> bool:
    """Whether the first digit of a minor tick is one that is written: 2 or 5."""
    return round(value / 10 ** math.floor(math.log10(value))) in (2, 5)
