"""Which models an objective can train."""

from typing import Any

from genray.models import MODELS


def require_modules(objective: str, needed: tuple[str, ...], model: Any, judges: str = "images") -> None:
    """Nothing, when `model` builds exactly the modules that the objective of this name trains.

    Args:
        objective: its name.
        needed: names of modules.
        model: of `MODELS`.
        judges: what a discriminator of it must take, images or latents.

    Raises:
        ValueError: it builds others; the message names models that would do.
    """

    def fits(kind: Any) -> bool:
        return set(getattr(kind, "modules", ())) == set(needed) and getattr(kind, "judges", "images") == judges

    if fits(model):
        return
    name = next((key for key, cls in MODELS.items() if type(model) is cls), type(model).__name__)
    fitting = sorted(key for key, cls in MODELS.items() if fits(cls))
    built = tuple(getattr(model, "modules", ()))
    of, judged = "", ""
    if set(built) == set(needed):
        of, judged = f" of {judges}", f" of {getattr(model, 'judges', 'images')}"
    raise ValueError(
        f"objective {objective} trains {' and '.join(needed)}{of}, and model {name} has "
        f"{' and '.join(built) or 'no such module'}{judged}; choose model {' or '.join(fitting)}"
    )
