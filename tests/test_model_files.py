"""Each model's file stands on torch and the standard library alone: a registered model carries a copy of it."""

import ast
import importlib.util
import sys
from pathlib import Path

import pytest
import torch

import genray.models
from genray.models import MODELS

FILES = sorted(path for path in Path(genray.models.__file__).parent.glob("*.py") if path.name != "__init__.py")


def imported_packages(source: str) -> set[str]:
    packages: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            packages |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            packages.add("." if node.level else str(node.module).split(".")[0])
    return packages


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_model_file_imports_only_torch_and_the_standard_library(path: Path) -> None:
    assert imported_packages(path.read_text()) <= {"torch", *sys.stdlib_module_names}


@pytest.mark.parametrize("name", MODELS)
def test_model_rebuilt_from_a_copy_of_its_file_gives_the_same_numbers(name: str, tmp_path: Path) -> None:
    cls = MODELS[name]
    copy = tmp_path / "model.py"
    copy.write_text(Path(sys.modules[cls.__module__].__file__ or "").read_text())
    spec = importlib.util.spec_from_file_location("copied_model", copy)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["copied_model"] = module
    try:
        spec.loader.exec_module(module)
        built = cls().build((1, 8, 8), 10)
        copied = getattr(module, cls.__name__)().build((1, 8, 8), 10)
    finally:
        del sys.modules["copied_model"]
    for key, network in built.items():
        copied[key].load_state_dict(network.state_dict(), strict=True)
        copied[key].eval(), network.eval()
        inputs = torch.randn(2, network.latent_dim) if hasattr(network, "latent_dim") else torch.randn(2, 1, 8, 8)
        run = next(name for name in ("generate", "reconstruct", "forward") if hasattr(network, name))
        assert torch.equal(getattr(copied[key], run)(inputs), getattr(network, run)(inputs))


@pytest.mark.parametrize("name", MODELS)
def test_model_builds_exactly_the_modules_that_it_names(name: str) -> None:
    assert tuple(MODELS[name]().build((1, 8, 8), 10)) == MODELS[name].modules  # type: ignore[attr-defined]
