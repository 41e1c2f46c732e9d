"""A snapshot as an MLflow model that opens where genray is not installed, and without pickle.

Its `model.py` is written here: the source of the architecture's own file, of `data.pixels` and of
`mlflow_served`, and one line that joins them. The weights stay in safetensors, the rest in JSON.
"""

import ast
import importlib.metadata
import inspect
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np

from genray import snapshot
from genray.data import pixels
from genray.errors import RegistryError
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

SNAPSHOT_FILES = (snapshot.WEIGHTS, snapshot.CARD, MANIFEST)
_OWN_IMPORT = next(line for line in inspect.getsource(mlflow_served).splitlines(True) if "from genray." in line)
MODEL_FILES = ("MLmodel", "model.py", "requirements.txt", "conda.yaml", "python_env.yaml")
"""What MLflow itself puts beside `artifacts/`, which holds the snapshot's files."""


def package(directory: Path, to: Path) -> Snapshot:
    """Writes the snapshot at `directory` as an MLflow model folder `to`, which must not exist yet.

    Returns:
        The snapshot, verified.

    Raises:
        CheckpointError: the snapshot is damaged.
        RegistryError: the architecture's file cannot stand alone.
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
        RegistryError: the architecture's file imports more than torch and the standard library, or
            shares a name with what it is joined to.
    """
    knobs = type(made.config.model)
    module = sys.modules[knobs.__module__]
    architecture = inspect.getsource(module)
    # what decodes images is copied as it is, so that they are prepared as for training
    served = inspect.getsource(pixels) + inspect.getsource(mlflow_served).replace(_OWN_IMPORT, "")
    _check_stands_alone(architecture, served, knobs)
    kind = {"classifier": "ServedClassifier", "tokenizer": "ServedTokenizer"}.get(made.product, "ServedGenerator")
    return (
        f"# Made by genray of the snapshot {made.digest}. Needs torch, safetensors, numpy, pillow and mlflow.\n"
        f"{architecture}\n\n{served}\n\nmlflow.models.set_model({kind}({knobs.__name__}))\n"
    )


def signature(made: Snapshot) -> ModelSignature:
    """What a request holds and what comes back; what a classifier takes is more than one kind, and it checks itself."""
    channels, height, width = made.image_shape
    images = TensorSpec(np.dtype(np.uint8), (-1, height, width, channels))
    if made.product == "classifier":
        return ModelSignature(outputs=Schema([ColSpec("float", name) for name in made.classes]))
    if made.product == "tokenizer":
        return ModelSignature(inputs=Schema([images]), outputs=Schema([TensorSpec(np.dtype(np.int64), (-1, -1, -1))]))
    return ModelSignature(
        inputs=Schema([ColSpec("long", "n"), ColSpec("long", "seed"), ColSpec("long", "label", required=False)]),
        outputs=Schema([images]),
        params=ParamSchema([ParamSpec("truncation", "double", 1.0)]),
    )


def requirements() -> list[str]:
    """Exact versions of the packages that `model.py` imports, without the build's local suffix."""
    names = ("torch", "safetensors", "numpy", "pillow", "pandas", "mlflow")
    return [f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in names]


def _check_stands_alone(architecture: str, served: str, knobs: type) -> None:
    where = f"{knobs.__module__.replace('.', '/')}.py"
    foreign = sorted(_packages(architecture) - sys.stdlib_module_names - {"torch"})
    if foreign:
        raise RegistryError(
            f"{where} imports {', '.join(foreign)}, expected only torch and the standard library: "
            f"a registered model carries a copy of that file; write what it needs into it"
        )
    shared = sorted(_defined(architecture) & _defined(served))
    if shared:
        raise RegistryError(f"{where} defines {', '.join(shared)}, as mlflow_served.py does; rename it there")


def _packages(source: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("." if node.level else str(node.module).partition(".")[0])
    return found


def _defined(source: str) -> set[str]:
    """Names of classes, functions and variables at the top of a file."""
    found = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    return found
