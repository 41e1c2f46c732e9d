"""Every error that genray raises on purpose.

GenrayError
├── ConfigError                     a field, preset or combination that cannot work
├── DataError                       images, folders, archives, splits
│   └── CorruptImageError           one image that does not decode, named by path
├── StorageError (OSError)          a run directory that cannot be read or written
├── CheckpointError                 a checkpoint or snapshot that is torn, damaged or foreign
│   └── ResumeError                 another configuration under the same run name
├── DivergenceError                 losses or gradients that stayed non-finite
├── ProtocolError                   two scores that must not be compared, or one that cannot be taken
├── TrackingError                   a tracking server that is missing, unreachable or refuses
├── RegistryError                   a model, alias or version that is missing or unsafe
└── ClusterError                    Ray missing, unreachable or too small

A message says what is wrong with its value, what was expected, and what to do.
"""

import difflib
from collections.abc import Iterable


class GenrayError(Exception):
    """Base of all errors above; the command line prints it without a traceback."""


class ConfigError(GenrayError):
    """A field, preset or combination that cannot work."""


class DataError(GenrayError):
    """Images, folders, archives or splits that cannot be used."""


class CorruptImageError(DataError):
    """One image that does not decode."""


class StorageError(GenrayError, OSError):
    """A run directory that cannot be read or written."""


class CheckpointError(GenrayError):
    """A checkpoint or snapshot that is torn, damaged or foreign."""


class ResumeError(CheckpointError):
    """A run that exists under the same name with another configuration."""


class DivergenceError(GenrayError):
    """Losses or gradients that stayed non-finite."""


class ProtocolError(GenrayError):
    """Two scores that must not be compared, or one that cannot be taken."""


class TrackingError(GenrayError):
    """A tracking server that is missing, unreachable or refuses."""


class RegistryError(GenrayError):
    """A registered model, alias or version that is missing or unsafe."""


class ClusterError(GenrayError):
    """Ray missing, unreachable or too small."""


def unknown(kind: str, value: str, choices: Iterable[str]) -> str:
    """The message for a name that is not among `choices`, with the nearest one."""
    names = sorted(choices)
    near = difflib.get_close_matches(value, names, n=1, cutoff=0.5)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return f"unknown {kind} {value!r}; choose from {', '.join(names)}{hint}"
