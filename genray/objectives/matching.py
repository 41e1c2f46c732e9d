"""Which models an objective can train."""

from typing import Any

from genray.models import MODELS


def require_modules(objective: str, needed: tuple[str, ...], model: Any) -> None:
    """Nothing, when `model` builds exactly the modules that the objective of this name trains.

    Raises:
        ValueError: it builds others; the message names models that would do.
    """
    built = tuple(getattr(model, "modules", ()))
    if set(built) == set(needed):
        return
    name = next((key for key, cls in MODELS.items() if type(model) is cls), type(model).__name__)
    fitting = sorted(key for key, cls in MODELS.items() if set(getattr(cls, "modules", ())) == set(needed))
    raise ValueError(
        f"objective {objective} trains {' and '.join(needed)}, "
        f"and model {name} has {' and '.join(built) or 'no such module'}; choose model {' or '.join(fitting)}"
    )
