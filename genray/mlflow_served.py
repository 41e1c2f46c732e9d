import base64
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import torch
from safetensors.torch import load_file

from genray.data.pixels import Shape, decode

SERVED_BATCH_SIZE = 256


class ServedModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """The network of a snapshot, rebuilt by the architecture `knobs`, without genray and without pickle.

    `model_config`: `device` (a torch device; bits are equal on one kind of CPU only) and `max_n`
    (most images of one request).
    """

    def __init__(self, knobs: type) -> None:
        self.knobs = knobs

    def load_context(self, context: Any) -> None:
        """Builds the network and loads its weights, after comparing every file with the manifest."""
        files = {name: Path(path) for name, path in context.artifacts.items()}
        for name, digest in json.loads(files["manifest"].read_text())["files"].items():
            path = files["manifest"].with_name(name)
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    raise ValueError(
                        f"{path} is damaged: its SHA-256 is not what manifest.json says; download it again"
                    )
        card = json.loads(files["config"].read_text())
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in card["config"]["model"].items() if k != "name"}
        with torch.random.fork_rng(devices=[]):
            networks = self.knobs(**values).build(tuple(card["image_shape"]), len(card["classes"]))
        module: torch.nn.Module = networks[card["product"]]
        # names with a slash are of a classifier that was trained beside it
        weights = {name: tensor for name, tensor in load_file(files["weights"]).items() if "/" not in name}
        module.load_state_dict(weights, strict=True)
        channels, height, width = card["image_shape"]
        self.image_shape: Shape = (channels, height, width)
        self.classes: list[str] = card["classes"]
        self.settings: dict[str, Any] = {"device": "cpu", "max_n": 1024} | dict(context.model_config or {})
        self.device = torch.device(str(self.settings["device"] or "cpu"))
        self.module: Any = module.eval().requires_grad_(False).to(self.device)


class ServedGenerator(ServedModel):
    """Rows of `n`, `seed` and perhaps `label` in, images out."""

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> np.ndarray:
        """All images of all rows in order, uint8 (N, H, W, C); a row alone decides what its images are.

        Args:
            context: of MLflow; not used after loading.
            model_input: `n` images of `seed`; of class `label`, or of all in turn where no row has one.
            params: `truncation`, a factor on the latents, or on the styles around their mean, 1 by default.

        Raises:
            ValueError: a number is out of range, or more than `max_n` images are asked for.
        """
        truncation = float((params or {}).get("truncation", 1.0))
        if not 0 <= truncation < float("inf"):
            raise ValueError(f"truncation={truncation!r} must be at least 0, e.g. 1.0")
        rows = list(self._rows(model_input))
        total, most = sum(n for n, _, _ in rows), int(self.settings["max_n"])
        if total > most:
            raise ValueError(f"n={total} images in one request, expected at most {most}; ask several times")
        images = [self._sample(n, seed, label, truncation) for n, seed, label in rows]
        return torch.cat(images).permute(0, 2, 3, 1).contiguous().numpy()

    def _rows(self, table: pd.DataFrame) -> Iterator[tuple[int, int, int | None]]:
        num_labels = int(self.module.num_labels)
        for row in table.to_dict("records"):
            n, seed = int(row["n"]), int(row["seed"])
            label = None if pd.isna(row.get("label")) else int(row["label"])
            if n < 1:
                raise ValueError(f"n={n} must be at least 1")
            if seed < 0:
                raise ValueError(f"seed={seed} must be at least 0")
            if label is not None and num_labels == 0:
                raise ValueError(f"label={label} was asked for, but the model is unconditional; leave the label out")
            if label is not None and not 0 <= label < num_labels:
                raise ValueError(f"label={label} must lie between 0 and {num_labels - 1}")
            yield n, seed, label

    @torch.no_grad()
    def _sample(self, n: int, seed: int, label: int | None, truncation: float) -> torch.Tensor:
        z = torch.randn(n, int(self.module.latent_dim), generator=torch.Generator().manual_seed(seed))
        of_styles = {"truncation": truncation} if hasattr(self.module, "mean_style") else {}
        z = z if of_styles else z * truncation
        labels = None
        if self.module.num_labels:
            labels = torch.arange(n) % int(self.module.num_labels) if label is None else torch.full((n,), label)
        images = []
        for start in range(0, n, SERVED_BATCH_SIZE):
            part = slice(start, start + SERVED_BATCH_SIZE)
            own = None if labels is None else labels[part].to(self.device)
            made = self.module.generate(z[part].to(self.device), own, **of_styles).float()
            images.append(((made + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu())
        return torch.cat(images)


class ServedClassifier(ServedModel):
    """Images in, class probabilities out."""

    @torch.no_grad()
    # a hint that named all three kinds would make MLflow warn at every import
    def predict(self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Probabilities, float32, one row an image and one column a class.

        Args:
            context: of MLflow; not used after loading.
            model_input: pixels from 0 to 255 (B, H, W, C); or encoded images (PNG, JPEG, …) of any size, as a list
                of bytes or in a column `image` of bytes or base64.
            params: none.

        Raises:
            ValueError: what is no image, is of another shape, or more than `max_n` images.
        """
        total, most = len(model_input), int(self.settings["max_n"])
        if total > most:
            raise ValueError(f"{total} images in one request, expected at most {most}; ask several times")
        pixels = self._pixels(model_input)
        rows = [torch.zeros(0, len(self.classes))]
        for start in range(0, len(pixels), SERVED_BATCH_SIZE):
            part = torch.from_numpy(np.ascontiguousarray(pixels[start : start + SERVED_BATCH_SIZE]))
            images = part.permute(0, 3, 1, 2).contiguous().to(self.device).float() / 127.5 - 1
            rows.append(self.module(images).float().softmax(dim=1).cpu())
        return pd.DataFrame(torch.cat(rows).numpy(), columns=self.classes)

    def _pixels(self, given: Any) -> np.ndarray:
        """uint8 (B, H, W, C)."""
        if isinstance(given, pd.DataFrame):
            if list(given.columns) != ["image"]:
                raise ValueError(f"columns {list(given.columns)} were given, expected one, 'image', of encoded images")
            given = given["image"].tolist()
        channels, height, width = self.image_shape
        if isinstance(given, list) and all(isinstance(image, bytes | bytearray | str) for image in given):
            decoded = [self._decoded(index, image) for index, image in enumerate(given)]
            return np.stack(decoded) if decoded else np.zeros((0, height, width, channels), np.uint8)
        pixels = np.asarray(given)
        if pixels.ndim != 4 or pixels.shape[1:] != (height, width, channels):
            raise ValueError(
                f"pixels of shape {pixels.shape} were given, expected (B, {height}, {width}, {channels}); "
                "encoded images (PNG, JPEG) may have any size"
            )
        if pixels.dtype != np.uint8:
            whole = pixels.astype(np.uint8)
            if not np.array_equal(whole, pixels):
                raise ValueError(f"pixels of type {pixels.dtype} were given, expected whole numbers from 0 to 255")
            pixels = whole
        return pixels

    def _decoded(self, index: int, image: bytes | str) -> np.ndarray:
        try:
            encoded = base64.b64decode(image, validate=True) if isinstance(image, str) else bytes(image)
            return decode(encoded, self.image_shape)
        except ValueError as error:
            raise ValueError(f"image {index} of the request does not decode: {error}") from error


class ServedTokenizer(ServedModel):
    """Images in, codes out; `self.module.decode` takes codes back to logits of pixels."""

    @torch.no_grad()
    def predict(self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None) -> np.ndarray:
        """Codes, int64 (B, h, w), or continuous latents, float32 (B, D, h, w), of images, uint8 (B, H, W, C)."""
        rows = []
        for start in range(0, len(model_input), SERVED_BATCH_SIZE):
            pixels = torch.from_numpy(np.ascontiguousarray(model_input[start : start + SERVED_BATCH_SIZE]))
            images = pixels.permute(0, 3, 1, 2).contiguous().to(self.device).float() / 127.5 - 1
            rows.append(self.module.encode(images).cpu())
        return torch.cat(rows).numpy()
