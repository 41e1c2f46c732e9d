"""Complete named runs.

A preset is a function that returns a config. Its docstring says what to expect: `Hardware:`,
`Time:` and `Score:` are what `genray presets` shows, measured with the command `genray train NAME`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from genray.config import Config
from genray.errors import ConfigError, unknown
from genray.presets.classifier import CLASSIFIERS
from genray.presets.gan import GANS
from genray.presets.latent import LATENT
from genray.presets.vae import VAES

PRESETS: dict[str, Callable[[], Config]] = {
    made.__name__.replace("_", "-"): made for made in (*GANS, *VAES, *LATENT, *CLASSIFIERS)
}


@dataclass(frozen=True)
class Expectation:
    """What the docstring of a preset promises."""

    summary: str
    hardware: str
    time: str
    score: str


def preset(name: str) -> Config:
    """The config of a preset.

    Raises:
        ConfigError: there is none of that name; says the nearest.
    """
    if name not in PRESETS:
        raise ConfigError(unknown("preset", name, PRESETS))
    return PRESETS[name]()


def expectation(name: str) -> Expectation:
    """What to expect of a preset, read from its docstring."""
    text = PRESETS[name].__doc__ or ""
    found = dict(re.findall(r"^ *(Hardware|Time|Score): (.+)$", text, flags=re.MULTILINE))
    return Expectation(text.strip().splitlines()[0], found["Hardware"], found["Time"], found["Score"])
