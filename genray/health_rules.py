"""What the rules of a run's health compare with, and what they do: a section of its configuration."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from genray.errors import ConfigError
from genray.fields import check_at_least

Action = Literal["off", "warn", "stop", "rollback"]


@dataclass(frozen=True, kw_only=True)
class Health:
    """What a run watches in itself.

    A rule that holds is noted (warn), ends the run (stop), or takes it back to its best checkpoint,
    from where it goes on with a lower learning rate (rollback).
    """

    score_rule: Action = "stop"
    """FID or KID above its best times `score_ratio`, or accuracy below its best divided by it.
    Judged at each checkpoint by the scores that are there: on Ray they come while the run trains, where
    `eval.num_cpus` cores are free for them; with cluster.num_workers=0 only after its last step."""
    score_ratio: float = 1.5
    """How much worse than the best is too bad."""
    score_patience: int = 5
    """Scores in a row that must be as bad."""
    collapse_rule: Action = "warn"
    """Images of the fixed latents closer to each other than `collapse_share` of the farthest they were."""
    collapse_share: float = 0.5
    """Share of the largest diversity so far."""
    balance_rule: Action = "warn"
    """Discriminator right on a share above `balance_accuracy`, and the generator's loss rising."""
    balance_accuracy: float = 0.98
    """Share of reals and fakes told apart."""
    posterior_rule: Action = "warn"
    """KL of a VAE below `posterior_kl`: the latents say nothing about the image."""
    posterior_kl: float = 0.5
    """Nats per image."""
    codebook_rule: Action = "warn"
    """Share of a tokenizer's codes that are used below `codebook_share`: most of the codebook is idle."""
    codebook_share: float = 0.1
    """Share of all codes; one is used while its running use is above 3 % of an even one."""
    skipped_rule: Action = "warn"
    """More updates a step than `skipped_share` skipped for non-finite gradients since the last log point."""
    skipped_share: float = 0.1
    """Updates per step."""
    patience: int = 5
    """Log points in a row at which the balance, the posterior and the codebook rule must hold."""
    rollback_lr_factor: float = 0.5
    """What every learning rate is multiplied by at each rollback."""
    max_rollbacks: int = 3
    """Rollbacks of a run; where it would take one more it stops."""

    def __post_init__(self) -> None:
        check_at_least("health", self, 1, "score_ratio", "score_patience", "patience")
        check_at_least("health", self, 0, "posterior_kl", "skipped_share", "max_rollbacks")
        for name in ("collapse_share", "balance_accuracy", "codebook_share", "rollback_lr_factor"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"health.{name}={getattr(self, name)!r} must lie in (0, 1], e.g. 0.5")

    @property
    def rolls_back(self) -> bool:
        """Whether any rule may change what a step computes; the others only end a run."""
        return "rollback" in dataclasses.asdict(self).values()
