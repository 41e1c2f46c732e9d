"""What every test may ask for."""

import os
from pathlib import Path

import pytest

SHARED_DATA = Path(os.environ.get("GENRAY_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Folder with real MNIST, CIFAR-10 as JPEG in a zip, and text; tests that need it carry `@pytest.mark.data`."""
    if not (SHARED_DATA / "MNIST").is_dir():
        pytest.skip(f"needs the data sets of $GENRAY_DATA, and {SHARED_DATA} has none")
    return SHARED_DATA
