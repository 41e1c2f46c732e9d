"""A snapshot as an MLflow model that opens where genray is not installed, and without pickle.

Its `model.py` is written here: the sources of the architecture and of `mlflow_served`, each behind those of
genray that it imports, and one line that joins them. The weights stay in safetensors, the rest in JSON.
"""

import importlib.metadata
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from genray import snapshot, standalone
from genray.manifest import MANIFEST
from genray.snapshot import Snapshot

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message=".*Any type hint is inferred as AnyType")  # MLflow, about itself
    import mlflow.pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec

    from genray import mlflow_served

MAX_IMAGES = 1024
"""Most images of one request, unless `model_config` says otherwise: the scoring server has no limit of its own."""

MODEL_PACKAGES = frozenset({"torch"})
"""What files of architectures may import besides the standard library and one another."""
SERVED_PACKAGES = frozenset({"torch", "safetensors", "numpy", "PIL", "pandas", "mlflow"})
"""What the rest of `model.py` may import, the same that `requirements` names."""
SNAPSHOT_FILES = (snapshot.WEIGHTS, snapshot.CARD, MANIFEST)
MODEL_FILES = ("MLmodel", "model.py", "requirements.txt", "conda.yaml", "python_env.yaml")
"""What MLflow itself puts beside `artifacts/`, which holds the snapshot's files."""


def package(directory: Path, to: Path) -> Snapshot:
    """Writes the snapshot at `directory` as an MLflow model folder `to`, which must not exist yet.

    Returns:
        The snapshot, verified.

    Raises:
        CheckpointError: the snapshot is damaged.
        RegistryError: the architecture cannot stand alone.
    """
    made = snapshot.load(directory)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # An example would be a fourth kind of file to trust, and the signature says what a request holds.
        warnings.filterwarnings("ignore", message=".*An input example was not provided")
        code = Path(folder) / "model.py"
        code.write_text(render(made))
        mlflow.pyfunc.save_model(
            path=str(to),
            python_model=str(code),
            artifacts={
                "weights": str(directory / snapshot.WEIGHTS),
                "config": str(directory / snapshot.CARD),
                "manifest": str(directory / MANIFEST),
            },
            signature=signature(made),
            pip_requirements=requirements(),
            model_config={"device": "cpu", "max_n": MAX_IMAGES},
        )
    _forget_paths(to)
    return made


def _forget_paths(model: Path) -> None:
    """Takes the paths of this machine, which nobody needs, out of the folder's MLmodel."""
    card = Model.load(str(model))
    flavor = card.flavors["python_function"]
    flavor["model_code_path"] = "model.py"
    for artifact in flavor["artifacts"].values():
        artifact["uri"] = artifact["path"]
    card.save(str(model / "MLmodel"))


def render(made: Snapshot) -> str:
    """The stand-alone `model.py` of a snapshot.

    Raises:
        RegistryError: the architecture imports more than torch, the standard library and its siblings,
            or a name has two meanings in what is joined.
    """
    knobs = type(made.config.model)
    architecture = standalone.with_siblings(knobs.__module__, "genray.models", MODEL_PACKAGES)
    # what decodes images comes with it as it is, so that they are prepared as for training
    served = standalone.with_siblings(mlflow_served.__name__, "genray", SERVED_PACKAGES)
    kind = {"classifier": "ServedClassifier", "tokenizer": "ServedTokenizer"}.get(made.product, "ServedGenerator")
    return (
        f"# Made by genray of the snapshot {made.digest}. Needs torch, safetensors, numpy, pillow and mlflow.\n"
        f"{standalone.join(architecture | served)}\n\nmlflow.models.set_model({kind}({knobs.__name__}))\n"
    )


def signature(made: Snapshot) -> ModelSignature:
    """What a request holds and what comes back; what a classifier takes is more than one kind, and it checks itself."""
    channels, height, width = made.image_shape
    images = TensorSpec(np.dtype(np.uint8), (-1, height, width, channels))
    if made.product == "classifier":
        return ModelSignature(outputs=Schema([ColSpec("float", name) for name in made.classes]))
    if made.product == "tokenizer":
        module: Any = made.module
        codes = TensorSpec(np.dtype(np.int64), (-1, *module.latent_shape[1:]))
        if module.continuous:
            codes = TensorSpec(np.dtype(np.float32), (-1, *module.latent_shape))
        return ModelSignature(inputs=Schema([images]), outputs=Schema([codes]))
    return ModelSignature(
        inputs=Schema([ColSpec("long", "n"), ColSpec("long", "seed"), ColSpec("long", "label", required=False)]),
        outputs=Schema([images]),
        params=ParamSchema([ParamSpec("truncation", "double", 1.0)]),
    )


def requirements() -> list[str]:
    """Exact versions of the packages that `model.py` imports, without the build's local suffix."""
    names = ("torch", "safetensors", "numpy", "pillow", "pandas", "mlflow")
    return [f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in names]
