"""Files of models stand on torch, the standard library and one another: a registered model carries copies of them."""

import importlib
import importlib.util
import pkgutil
import sys
from pathlib import Path

import pytest
import torch

import genray.models
from genray import standalone
from genray.models import MODELS

FILES = sorted(module.name for module in pkgutil.iter_modules(genray.models.__path__, "genray.models."))


def with_siblings(name: str) -> dict[str, str]:
    importlib.import_module(name)
    return standalone.with_siblings(name, "genray.models", frozenset({"torch"}))


@pytest.mark.parametrize("name", FILES)
def test_model_file_imports_only_torch_the_standard_library_and_its_siblings(name: str) -> None:
    assert list(with_siblings(name))[-1] == name


@pytest.mark.parametrize("name", MODELS)
def test_model_rebuilt_from_copies_of_its_files_gives_the_same_numbers(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cls = MODELS[name]
    copy = tmp_path / "model.py"
    copy.write_text(standalone.join(with_siblings(cls.__module__)))
    spec = importlib.util.spec_from_file_location("copied_model", copy)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with monkeypatch.context() as patch:
        for loaded in [each for each in sys.modules if each.partition(".")[0] == "genray"]:
            patch.setitem(sys.modules, loaded, None)
        patch.setitem(sys.modules, "copied_model", module)
        spec.loader.exec_module(module)
        copied = getattr(module, cls.__name__)().build((1, 8, 8), 10)
    for key, network in cls().build((1, 8, 8), 10).items():
        copied[key].load_state_dict(network.state_dict(), strict=True)
        copied[key].eval(), network.eval()
        inputs = torch.randn(2, network.latent_dim) if hasattr(network, "latent_dim") else torch.randn(2, 1, 8, 8)
        run = next(name for name in ("generate", "reconstruct", "forward") if hasattr(network, name))
        assert torch.equal(getattr(copied[key], run)(inputs), getattr(network, run)(inputs))


@pytest.mark.parametrize("name", MODELS)
def test_model_builds_exactly_the_modules_that_it_names(name: str) -> None:
    assert tuple(MODELS[name]().build((1, 8, 8), 10)) == MODELS[name].modules  # type: ignore[attr-defined]
