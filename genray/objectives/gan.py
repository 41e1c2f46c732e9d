"""Adversarial training: a discriminator tells reals from fakes, a generator makes the fakes.

The forms of the loss are those of `adversarial`, the penalties those of `penalties`; any form goes with any of them.
Auxiliary classifier: Odena et al. 2017, arXiv:1610.09585.
Consistency: Zhang et al. 2020, arXiv:1910.12027, and, of both sides, Zhao et al. 2020, arXiv:2002.04724.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genray.compiled import uncompiled
from genray.objectives.adversarial import Form, generator_loss, margin_loss, split_judgement
from genray.objectives.augmentation import NUM_DRAWS, AdaptiveProbability, Operation, augment, translate
from genray.objectives.base import Batch, Networks, Phase
from genray.objectives.matching import require_modules
from genray.objectives.penalties import (
    LogitMeans,
    PathMean,
    interpolates,
    path_lengths,
    unit_gradient_penalty,
    zero_centered_gradient_penalty,
)

SIDES = ("reals", "fakes")
PENALTY_NAMES = {"reals": "r1", "fakes": "r2"}
ADAPTIVE, MEANS, PATHS = "augmentation", "logit_means", "path_lengths"
PATH_EVERY = 4
"""Updates of the generator to one that minds the lengths of paths, and then for all of them."""


Shared = Tensor | tuple[Tensor, Tensor]
"""Fakes (B, C, H, W) in [-1, 1]; and, where the lengths of paths are minded, the styles that they were made from."""


@dataclass(frozen=True, kw_only=True)
class GAN:
    """The discriminator tells reals from fakes; the generator makes its logits of fakes rise.

    Both phases of a step see the same fakes, made from one set of latents and, if the networks are
    conditional, the labels of the reals.
    """

    form: Form = "non-saturating"
    """How logits become a loss; relativistic compares each real with the fake of its place in the batch."""
    gamma: float = 0.0
    """Weight of the zero-centred gradient penalty; 0: none."""
    penalised: Literal["reals", "fakes", "both"] = "reals"
    """Where that penalty is taken: at reals (R1), fakes (R2), or both as in R3GAN."""
    gradient_penalty: float = 0.0
    """Weight of the penalty that pulls gradients between reals and fakes to length 1 (WGAN-GP, there 10); 0: none."""
    consistency: float = 0.0
    """Weight of the squared change of logits when images move by some pixels (CR and bCR, there 10); 0: none."""
    consistent: Literal["reals", "fakes", "both"] = "both"
    """Of which images: reals as in CR, or both as in bCR."""
    lecam: float = 0.0
    """Weight of the squared distance of logits from the mean of the other side's in past steps (LeCam); 0: none."""
    path_length: float = 0.0
    """Weight of the squared distance of the generator's path lengths from their running mean (StyleGAN2, there 2), at
    every fourth of its updates; 0: none."""
    class_loss: float = 0.0
    """Weight of the cross-entropy of the classes that the discriminator names, of reals and fakes, in both phases
    (AC-GAN, there 1); 0: it names none."""
    num_discriminator_steps: int = 1
    """Steps, each of one discriminator update, to one update of the generator."""
    augment: tuple[Operation, ...] = ()
    """Operations on whatever the discriminator sees: color, translation, cutout."""
    augment_probability: float = 1.0
    """Probability of each operation for each image, where it is not adaptive."""
    augment_target: float | None = None
    """Mean sign of the logits of reals that an adaptive probability steers to, e.g. 0.6. None: it is not adaptive."""
    augment_samples: int = 500_000
    """Images in which an adaptive probability may go from 0 to 1."""

    def __post_init__(self) -> None:
        for name in ("gamma", "gradient_penalty", "consistency", "lecam", "path_length", "class_loss"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"objective.{name}={getattr(self, name)!r} must be at least 0")
        for name in ("num_discriminator_steps", "augment_samples"):
            if not getattr(self, name) >= 1:
                raise ValueError(f"objective.{name}={getattr(self, name)!r} must be at least 1")
        if not 0 <= self.augment_probability <= 1:
            raise ValueError(f"objective.augment_probability={self.augment_probability!r} must lie in [0, 1]")
        if self.augment_probability < 1 and (not self.augment or self.augment_target is not None):
            what = "augment_target chooses it" if self.augment else "augment names no operations"
            raise ValueError(
                f"objective.augment_probability={self.augment_probability!r}, and objective.{what}; set it to 1, or "
                f"{'--objective.augment-target None' if self.augment else '--objective.augment color translation'}"
            )
        if self.augment_target is not None:
            self._check_target(self.augment_target)

    def _check_target(self, target: float) -> None:
        if not 0 < target < 1:
            raise ValueError(f"objective.augment_target={target!r} must lie between 0 and 1, e.g. 0.6")
        if not self.augment:
            raise ValueError(
                f"objective.augment_target={target!r} steers operations, and objective.augment names none; "
                "set --objective.augment color translation cutout"
            )
        if self.form in ("relativistic", "wasserstein"):
            raise ValueError(
                f"objective.augment_target={target!r} reads the sign of logits, and those of form={self.form!r} have "
                "no zero; anneal objective.augment_probability instead"
            )

    @property
    def phases(self) -> tuple[Phase, ...]:
        """Discriminator, then generator."""
        parts = ("pairs",) if self.form == "relativistic" else ("reals", "fakes")
        if self.gradient_penalty > 0:
            parts = ("interpolates", *parts)  # never last: the penalty does not reach the last bias
        return (
            Phase("discriminator", parts=parts),
            Phase("generator", parts=("fakes",), every=self.num_discriminator_steps),
        )

    @property
    def product(self) -> str:
        """The generator."""
        return "generator"

    @property
    def classifier(self) -> str | None:
        """The discriminator, where it learns to name classes."""
        return "discriminator" if self.class_loss > 0 else None

    def state(self) -> dict[str, nn.Module]:
        """An adaptive probability of augmentation; the means of past logits and paths, where they are needed."""
        kept: dict[str, nn.Module] = {MEANS: LogitMeans()} if self.lecam > 0 else {}
        if self.path_length > 0:
            kept[PATHS] = PathMean()
        return kept if self.augment_target is None else kept | {ADAPTIVE: AdaptiveProbability()}

    def check(self, model: Any) -> None:
        """Raises ValueError for a model of other modules, or one whose batch norm spoils the gradient penalty."""
        require_modules("gan", ("generator", "discriminator"), model)
        self._check_classifier(getattr(model, "conditioning", "projection") == "auxiliary-classifier")
        if self.path_length > 0 and not getattr(model, "style_dim", 0):
            raise ValueError(
                f"objective.path_length={self.path_length!r} measures paths of styles, and this generator has none; "
                "choose model stylegan2, or set --objective.path-length 0"
            )
        for name in ("gamma", "gradient_penalty"):
            if getattr(self, name) > 0 and getattr(model, "discriminator_norm", "none") == "batch":
                raise ValueError(
                    f"objective.{name}={getattr(self, name)!r} penalises a gradient per sample, and "
                    "model.discriminator_norm='batch' mixes the samples of a batch; "
                    f"set --model.discriminator-norm none, or --objective.{name.replace('_', '-')} 0"
                )

    def _check_classifier(self, there: bool) -> None:
        if there and not self.class_loss:
            raise ValueError(
                "model.conditioning='auxiliary-classifier' learns from objective.class_loss=0.0 nothing; "
                "set --objective.class-loss 1, or --model.conditioning projection"
            )
        if self.class_loss and not there:
            raise ValueError(
                f"objective.class_loss={self.class_loss!r} is for a discriminator that names classes, and this one "
                "names none; set --model.conditioning auxiliary-classifier (dcgan, sngan), or --objective.class-loss 0"
            )

    def prepare(self, networks: Networks, batch: Batch) -> Shared:
        """Fakes, with the generator's graph when its phase is due in this step, and the styles that paths begin at."""
        generator: Any = networks.bare["generator"]
        z = batch.draws.normal("latents", generator.latent_dim)
        labels = _labels(networks, batch)
        made: Shared
        if not self.phases[1].due(batch.step):
            with torch.no_grad():
                made = generator(z, labels)
        elif self._minds_paths(batch.step):
            with _exactly(batch.images, True):
                made = networks.wrapped["generator"](z, labels, with_styles=True)
        else:
            made = networks.wrapped["generator"](z, labels)
        return made

    def _minds_paths(self, step: int) -> bool:
        return self.path_length > 0 and step // self.num_discriminator_steps % PATH_EVERY == 0

    def loss(
        self, phase: str, part: str, networks: Networks, batch: Batch, shared: Shared
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss of a part of a phase, and its metrics; `shared` is what `prepare` gave."""
        fakes, styles = shared if isinstance(shared, tuple) else (shared, None)
        if phase == "generator":
            return self._generator_loss(networks, batch, fakes, styles)
        if part == "interpolates":
            return self._interpolates_loss(networks, batch, fakes)
        return self._discriminator_loss(SIDES if part == "pairs" else (part,), networks, batch, fakes)

    def _generator_loss(
        self, networks: Networks, batch: Batch, fakes: Tensor, styles: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        discriminator, labels = networks.bare["discriminator"], _labels(networks, batch)
        shown = self._augmented(fakes, "generator", networks, batch)
        margins, class_logits = split_judgement(discriminator(shown, labels), fakes)
        if self.form == "relativistic":
            with torch.no_grad():
                reals = self._augmented(batch.images, "generator/reals", networks, batch)
                margins_of_reals, _ = split_judgement(discriminator(reals, labels), reals)
            margins = margins - margins_of_reals
        loss = generator_loss(self.form, margins).mean()
        metrics = {"generator/loss": loss.detach()}
        if class_logits is not None:
            class_loss = F.cross_entropy(class_logits, batch.labels)
            loss, metrics["generator/class_loss"] = loss + self.class_loss * class_loss, class_loss.detach()
        if styles is not None:
            mean: Any = networks.bare[PATHS]
            with _exactly(fakes, True):
                lengths = path_lengths(fakes, styles, batch.draws.normal("path lengths", *fakes.shape[1:]))
            loss = loss + PATH_EVERY * self.path_length * mean.penalty(lengths).mean()
            metrics["generator/path_length"] = lengths.detach().mean()
        return loss, metrics

    def _discriminator_loss(
        self, sides: tuple[str, ...], networks: Networks, batch: Batch, fakes: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of the discriminator for reals, for fakes, or for both side by side in one pass through it.

        Gradients are penalised at the samples before their augmentation, as in StyleGAN2-ADA and R3GAN.
        """
        own = [_of_side(side, batch, fakes) for side in sides]
        penalised = self.gamma > 0 and any(self.penalised in (side, "both") for side in sides)
        kept = [side for side in sides if self.consistency > 0 and self.consistent in (side, "both")]
        samples = (own[0] if len(own) == 1 else torch.cat(own)).detach().requires_grad_(penalised)
        with _exactly(samples, penalised):
            shown = samples
            if self.augment:
                parts = zip(samples.chunk(len(sides)), sides, strict=True)
                shown = torch.cat([self._augmented(part, side, networks, batch) for part, side in parts])
            together, moved, class_logits = self._logits(shown, networks, batch, bool(kept))
            logits = dict(zip(sides, together.chunk(len(sides)), strict=True))
            loss, metrics = self._told_apart(logits)
            terms = [*self._penalties(samples, together, sides)] if penalised else []
            if kept:
                changes = dict(zip(sides, (together - moved).square().chunk(len(sides)), strict=True))
                terms += [(f"consistency_{side}", self.consistency, changes[side]) for side in kept]
            if class_logits is not None:
                for side, named in zip(sides, class_logits.chunk(len(sides)), strict=True):
                    terms += [(f"class_loss_{side}", self.class_loss, F.cross_entropy(named, batch.labels))]
                    metrics[f"discriminator/class_accuracy_{side}"] = (named.argmax(1) == batch.labels).float().mean()
            if self.lecam > 0:
                means: Any = networks.bare[MEANS]
                terms += [(f"lecam_{s}", self.lecam, means.distance(s, values)) for s, values in logits.items()]
            for name, weight, values in terms:
                value = values.mean()
                metrics[f"discriminator/{name}"] = value.detach()
                loss = loss + weight * value
        return loss, metrics | self._remembered(
            {side: values.detach() for side, values in logits.items()}, networks, batch
        )

    def _logits(
        self, samples: Tensor, networks: Networks, batch: Batch, move: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Logits of samples (k B, C, H, W), of the same moved by some pixels where `move` asks for them, and of their
        classes where the discriminator names them.
        """
        shown, labels = samples, _labels(networks, batch)
        if move:
            draws = batch.draws.uniform("consistency", 2).repeat(len(samples) // len(batch.images), 1)
            shown = torch.cat([samples, translate(samples.detach(), draws)])
        labels = None if labels is None else labels.repeat(len(shown) // len(batch.images))
        logits, class_logits = split_judgement(networks.wrapped["discriminator"](shown, labels), shown)
        of_samples = None if class_logits is None else class_logits[: len(samples)]
        return logits[: len(samples)], logits[len(samples) :], of_samples

    def _told_apart(self, logits: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """How well the sides are told apart: from each other, or one by one from zero."""
        if self.form == "relativistic":
            margins = logits["reals"] - logits["fakes"]
            loss, right = margin_loss(self.form, margins).mean(), (margins.detach() > 0).float().mean()
            metrics = {"discriminator/loss": loss.detach(), "discriminator/margin": margins.detach().mean()}
            return loss, metrics | {f"discriminator/accuracy_{side}": right for side in logits}
        ((side, values),) = logits.items()
        margins = values if side == "reals" else -values
        loss = margin_loss(self.form, margins).mean()
        return loss, {
            f"discriminator/loss_{side}": loss.detach(),
            f"discriminator/logits_{side}": values.detach().mean(),
            f"discriminator/accuracy_{side}": (margins.detach() > 0).float().mean(),
        }

    def _penalties(
        self, samples: Tensor, logits: Tensor, sides: tuple[str, ...]
    ) -> Iterator[tuple[str, float, Tensor]]:
        penalties = zero_centered_gradient_penalty(samples, logits).chunk(len(sides))
        for side, penalty in zip(sides, penalties, strict=True):
            if self.penalised in (side, "both"):
                yield PENALTY_NAMES[side], self.gamma / 2, penalty

    def _remembered(self, logits: dict[str, Tensor], networks: Networks, batch: Batch) -> dict[str, Tensor]:
        """Metrics of what the objective has learned from the logits for its next steps."""
        if self.lecam > 0:
            means: Any = networks.bare[MEANS]
            for side, values in logits.items():
                means.update(side, values)
        if self.augment_target is None or "reals" not in logits:
            return {}
        adaptive: Any = networks.bare[ADAPTIVE]
        adaptive.update(logits["reals"], self.augment_target, batch.draws.num_global / self.augment_samples)
        return {"discriminator/augment_probability": adaptive.probability.clone()}

    def _interpolates_loss(self, networks: Networks, batch: Batch, fakes: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        reals, others = (self._augmented(_of_side(side, batch, fakes), side, networks, batch) for side in SIDES)
        samples = interpolates(reals, others, batch.draws.uniform("interpolates", 1, 1, 1))
        with _exactly(samples, True):
            logits, _ = split_judgement(networks.wrapped["discriminator"](samples, _labels(networks, batch)), samples)
            penalty = unit_gradient_penalty(samples, logits).mean()
        return self.gradient_penalty * penalty, {"discriminator/gradient_penalty": penalty.detach()}

    def _augmented(self, images: Tensor, stream: str, networks: Networks, batch: Batch) -> Tensor:
        if not self.augment:
            return images
        adaptive: Any = networks.bare.get(ADAPTIVE)
        probability = self.augment_probability if adaptive is None else adaptive.probability
        return augment(images, batch.draws.uniform(f"augment/{stream}", NUM_DRAWS), self.augment, probability)


@contextmanager
def _exactly(samples: Tensor, penalised: bool) -> Iterator[None]:
    """fp32 and uncompiled where a gradient is penalised: in bf16 its own gradient has 2 to 3 digits of nothing much."""
    if not penalised:
        yield
        return
    with torch.autocast(samples.device.type, enabled=False), uncompiled():
        yield


def _of_side(side: str, batch: Batch, fakes: Tensor) -> Tensor:
    return batch.images if side == "reals" else fakes.detach()


def _labels(networks: Networks, batch: Batch) -> Tensor | None:
    """Labels of reals and fakes alike; None for unconditional networks."""
    generator: Any = networks.bare["generator"]
    return batch.labels if generator.num_labels else None
