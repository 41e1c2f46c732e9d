"""Which models an objective can train."""

from typing import Any

from genray.models import MODELS

IMAGES = {"judges": "images", "draws": "images"}
"""What the discriminator of a model takes, and what its generator draws, unless the model says otherwise."""


def require_modules(objective: str, needed: tuple[str, ...], model: Any, **about: str) -> None:
    """Nothing, when `model` builds exactly the modules that the objective of this name trains.

    Args:
        objective: its name.
        needed: names of modules.
        model: of `MODELS`.
        about: what else it must be, where that is not as in `IMAGES`.

    Raises:
        ValueError: it builds others; the message names models that would do.
    """
    wanted = IMAGES | about

    def fits(kind: Any) -> bool:
        return set(getattr(kind, "modules", ())) == set(needed) and all(
            getattr(kind, name, IMAGES[name]) == value for name, value in wanted.items()
        )

    if fits(model):
        return
    name = next((key for key, cls in MODELS.items() if type(model) is cls), type(model).__name__)
    fitting = sorted(key for key, cls in MODELS.items() if fits(cls))
    built = tuple(getattr(model, "modules", ()))
    of, own = "", ""
    if set(built) == set(needed):
        differ = next(key for key, value in wanted.items() if getattr(model, key, IMAGES[key]) != value)
        of, own = f" of {wanted[differ]}", f" of {getattr(model, differ, IMAGES[differ])}"
    raise ValueError(
        f"objective {objective} trains {' and '.join(needed)}{of}, and model {name} has "
        f"{' and '.join(built) or 'no such module'}{own}; choose model {' or '.join(fitting)}"
    )
