"""Config fields from the values that JSON gives: unknown names and wrong types are refused."""

import dataclasses
import math
import re
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from genray.errors import ConfigError, unknown


def build_section(name: str, cls: type, values: dict[str, Any]) -> Any:
    """`cls(**values)` from JSON values: unknown names and wrong types are refused."""
    types = typing.get_type_hints(cls)
    known = {f.name for f in dataclasses.fields(cls)}
    made: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            raise ConfigError(unknown("field", f"{name}.{key}", (f"{name}.{k}" for k in known)))
        made[key] = _coerce(f"{name}.{key}", types[key], value)
    try:
        return cls(**made)
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        text = str(error)
        raise ConfigError(text if text.startswith(f"{name}.") else f"{name}: {text}") from error


def as_object(name: str, values: Any) -> dict[str, Any]:
    """`values`, where JSON gave an object.

    Raises:
        ConfigError: it gave something else.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{name} is {values!r:.60}; expected an object of fields and values")
    return values


def check_at_least(section: str, values: Any, least: float, *names: str) -> None:
    """Refuses fields `names` of the section `values` that are below `least`; None passes.

    Raises:
        ConfigError: names the field and its value.
    """
    for name in names:
        value = getattr(values, name)
        if value is not None and not value >= least:
            raise ConfigError(f"{section}.{name}={value!r} must be at least {least}")


def check_finite(values: Mapping[str, Any]) -> None:
    """Refuses values by dotted name, alone or in lists, that are infinite or no numbers.

    Raises:
        ConfigError: names the field and its value.
    """
    for name, value in values.items():
        for number in value if isinstance(value, list | tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise ConfigError(f"{name}={value!r} must be finite, and so must all numbers of a config")


def check_no_password(section: str, values: Any, name: str) -> None:
    """Refuses a field that holds a password: a config is written down, logged and shown.

    Raises:
        ConfigError: names the field, and not its value.
    """
    if re.search(r"://[^/@\s]*:[^/@\s]*@", getattr(values, name) or ""):
        raise ConfigError(
            f"{section}.{name} holds a password, and a config is no secret; give the address without it, and the "
            "password in the environment: MLFLOW_TRACKING_PASSWORD, AWS_SECRET_ACCESS_KEY, or in MLFLOW_TRACKING_URI"
        )


def _coerce(name: str, hint: Any, value: Any) -> Any:
    """`value`, as JSON gave it, in the type `hint`."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else ()
    for option in options or (hint,):
        origin, args = typing.get_origin(option), typing.get_args(option)
        if option is type(None) and value is None:
            return None
        if origin is Literal and any(value == a and type(value) is type(a) for a in args):
            return value
        if origin is tuple and isinstance(value, list | tuple):
            element = args[0]
            if args[-1] is Ellipsis or len(args) == len(value):
                return tuple(_coerce(name, element, v) for v in value)
        if option is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if option in (int, bool, str) and type(value) is option:
            return value
    raise ConfigError(f"{name}={value!r} is not of type {hint if options else getattr(hint, '__name__', hint)}")
