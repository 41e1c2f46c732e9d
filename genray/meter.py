"""Means of what the loop reports, kept on the device until somebody reads them."""

import torch
from torch import Tensor

from genray import distributed


class Meter:
    """Running sums of 0-d tensors by name; adding to one never waits for the device."""

    def __init__(self, sums: dict[str, Tensor] | None = None, counts: dict[str, int] | None = None) -> None:
        self.sums = sums or {}
        self.counts = counts or {}

    @torch.no_grad()
    def add(self, values: dict[str, Tensor]) -> None:
        """One more observation of each of `values`."""
        known = {name: value.float() for name, value in values.items() if name in self.sums}
        if known:
            torch._foreach_add_([self.sums[name] for name in known], list(known.values()))
        for name, value in values.items():
            if name not in known:
                self.sums[name] = value.detach().to(torch.float32, copy=True)
            self.counts[name] = self.counts.get(name, 0) + 1

    def set(self, name: str, value: Tensor) -> None:
        """`value` as the only observation of `name`."""
        self.sums[name], self.counts[name] = value.detach().clone(), 1

    def collect(self) -> dict[str, float]:
        """Means since the last call, averaged over ranks: one transfer from the device."""
        if not self.sums:
            return {}
        names = sorted(self.sums)
        counts = torch.tensor([self.counts[name] for name in names], dtype=torch.float32)
        means = torch.stack([self.sums[name] for name in names]) / counts.to(self.sums[names[0]].device)
        values = distributed.mean(means).tolist()
        self.sums, self.counts = {}, {}
        return dict(zip(names, values, strict=True))
