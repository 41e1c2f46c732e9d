"""Modules joined to one text that runs without them."""

import pytest

from genray.errors import RegistryError
from genray.models import MODELS, Model
from genray.standalone import join, with_siblings


def siblings(**sources: str) -> dict[str, str]:
    """Of `pack.model`, whose siblings are in the package `pack`."""
    read = {f"pack.{name}": source for name, source in sources.items()}.__getitem__
    return with_siblings("pack.model", "pack", frozenset({"torch"}), read)


def run(text: str) -> dict[str, object]:
    names: dict[str, object] = {}
    exec(compile(text, "model.py", "exec", dont_inherit=True), names)
    return names


def test_siblings_come_once_each_before_what_imports_it() -> None:
    text = join(
        siblings(
            model="from pack.maps import (\n    double,\n    half,\n)\nfrom pack.base import ONE\nRESULT = half(ONE)",
            maps="from pack.base import ONE\n\ndef double(x): return x + ONE\n\ndef half(x): return x / 2",
            base="ONE = 1",
        )
    )
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        "# pack/base.py",
        "# pack/maps.py",
        "# pack/model.py",
    ]
    assert run(text)["RESULT"] == 0.5


def test_joined_text_keeps_comments_and_docstrings() -> None:
    sources = siblings(
        model='"""A model."""\nfrom pack.base import ONE  # the unit\n# why\nTWO = ONE + 1',
        base='ONE = 1\n"""The unit."""',
    )
    assert (
        join(sources)
        == '# pack/base.py\nONE = 1\n"""The unit."""\n\n\n# pack/model.py\n"""A model."""\n# why\nTWO = ONE + 1\n'
    )


def test_future_import_of_a_later_part_holds_for_the_whole() -> None:
    text = join(
        siblings(
            model="from __future__ import annotations\nfrom pack.base import ONE\ndef f(x: NotThere): return x + ONE",
            base="ONE = 1",
        )
    )
    assert run(text)["f"](1) == 2  # type: ignore[operator]


@pytest.mark.parametrize(
    ("base", "model"),
    [
        ("def scale(x): return x", "def scale(x): return 2 * x"),
        ("SCALE = 1", "SCALE = 2"),
        ("from math import sin as scale", "from math import cos as scale"),
        ("from math import sin as scale", "def scale(x): return x"),
        ("class scale: pass", "scale: int = 1"),
        ("scale = 1", "if True:\n    scale = 2"),
    ],
)
def test_name_of_two_meanings_is_refused(base: str, model: str) -> None:
    sources = siblings(base=f"ONE = 1\n{base}", model=f"from pack.base import ONE\n{model}")
    with pytest.raises(
        RegistryError, match=r"(?i)^pack/model\.py defines scale, as pack/base\.py does, .*; rename one"
    ):
        join(sources)


@pytest.mark.parametrize(
    ("base", "model"),
    [
        ("import math", "import math"),
        ("from os import path as p", "import os.path as p"),
        ("SCALE = 1", "SCALE = 1"),
        ("A = [x for x in (1, 2)]", "B = [x for x in (3, 4)]"),
    ],
)
def test_name_of_one_meaning_may_be_in_two_modules(base: str, model: str) -> None:
    joined = run(join(siblings(base=f"ONE = 1\n{base}", model=f"from pack.base import ONE\n{model}")))
    apart = run(f"ONE = 1\n{base}") | run(model)
    assert {name: joined[name] for name in apart if name != "__builtins__"} == {
        name: value for name, value in apart.items() if name != "__builtins__"
    }


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("import numpy.random", "numpy.random"),
        ("def f():\n    import numpy", "numpy"),
        ("from other.place import x", "other.place"),
        ("from . import base", "."),
        ("import pack.base", "pack.base"),
        ("from pack import base", "pack"),
        ("from pack.base import ONE as UNIT", "pack.base"),
        ("from pack.base import *", "pack.base"),
        ("def f():\n    from pack.base import ONE", "pack.base"),
    ],
)
def test_import_of_anything_but_siblings_torch_and_the_standard_library_is_refused(line: str, named: str) -> None:
    with pytest.raises(RegistryError) as caught:
        siblings(model=f"import math\nfrom torch import nn\n{line}", base="ONE = 1")
    assert str(caught.value).startswith(
        f"pack/model.py imports {named}, expected only torch, the standard library and, "
        "by `from pack.NAME import a, b` at the top, its siblings"
    )


def test_siblings_of_a_sibling_are_held_to_the_same() -> None:
    with pytest.raises(RegistryError, match=r"^pack/base\.py imports numpy"):
        siblings(model="from pack.base import ONE", base="import numpy\nONE = 1")


def test_siblings_in_a_circle_are_refused() -> None:
    with pytest.raises(RegistryError, match=r"^pack\.model imports pack\.base imports pack\.model, expected no circle"):
        siblings(model="from pack.base import ONE", base="from pack.model import TWO")


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_every_architecture_can_be_joined_with_its_siblings(model: type[Model]) -> None:
    text = join(with_siblings(model.__module__, "genray.models", frozenset({"torch"})))
    assert f"class {model.__name__}" in text and "from genray" not in text
