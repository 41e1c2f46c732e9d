"""Feature extractors from weight files that the user names: `KIND:PATH`.

- `resnet18:PATH` … `resnet152:PATH`, `inception-v3:PATH`: torchvision's networks; PATH is a state
  dict, `.pth` (read with weights_only: nothing in it is run) or `.safetensors`.
- `torchscript:PATH`, `exported:PATH`: any module that TorchScript or `torch.export` (`.pt2`) wrote.
  It takes float32 images in [-1, 1] and returns features (B, D), or a pair of features and logits.
  `torchscript-299:PATH` says that it takes three channels of 299 x 299; without a number images
  enter as they are. An exported program knows its own size.
- `fid-inception:PATH`: the Inception network of the FID literature (2015-12-05, 2048 features) as
  the TorchScript file that the StyleGAN papers publish: takes uint8 colour images of any size,
  resizes them itself, and with `return_features=True` returns features. A protocol of its own: no
  score under it compares with one under `inception-v3`, which has other weights and preparation.

A TorchScript file and an exported program are programs: loading one runs what its author wrote. They
are loaded only when the user names them, never because a model or a registry does.

`bring` seals weights and kind into a folder, so that they reach every node with a run's other files.
"""

import json
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from genray.errors import CheckpointError, ConfigError, ProtocolError, unknown
from genray.evaluation.features import Extractor, resized
from genray.manifest import seal, sha256, verify
from genray.sampling import to_float

CARD = "extractor.json"
FORMAT = 1
FID_INCEPTION = "fid-inception"
_RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
KINDS = (*_RESNETS, "inception-v3", "torchscript", "exported", FID_INCEPTION)
_SPEC = re.compile(r"(?P<kind>[a-z][a-z0-9-]*?)(?:-(?P<size>\d+))?:(?P<path>.+)")
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def parse(spec: str) -> tuple[str, int | None, Path] | None:
    """Kind, size and file of `KIND[-SIZE]:PATH`; None for anything else: a folder, or a registry's model.

    Raises:
        ConfigError: the kind is unknown, cannot have a size, or the file is not there.
    """
    found = _SPEC.fullmatch(spec)
    if found is None or Path(spec).expanduser().exists() or "://" in spec or found["kind"] == "models":
        return None
    kind, size = found["kind"], int(found["size"]) if found["size"] else None
    if kind not in KINDS:
        raise ConfigError(f"eval.extractor={spec!r}: {unknown('kind', kind, KINDS)}")
    if size is not None and (kind != "torchscript" or size < 1):
        raise ConfigError(f"eval.extractor={spec!r}: only torchscript takes a size, e.g. torchscript-299:PATH")
    path = Path(found["path"]).expanduser()
    if not path.is_file():
        raise ConfigError(f"eval.extractor={spec!r}: {path} is no file; give the weights' file as KIND:PATH")
    return kind, size, path


def bring(spec: str, to: Path) -> Path:
    """Copies the weights that `spec` names into a sealed folder `to`, after it was seen to load.

    Raises:
        ConfigError: `spec` is wrong.
        CheckpointError: the file does not hold what its kind says.
    """
    parsed = parse(spec)
    if parsed is None:
        raise ConfigError(f"eval.extractor={spec!r} must be KIND:PATH with a kind of {', '.join(KINDS)}")
    kind, size, path = parsed
    _load(kind, size, path, "", "cpu")
    name = f"weights{path.suffix or '.bin'}"

    def write(folder: Path) -> None:
        shutil.copyfile(path, folder / name)
        card = {"format": FORMAT, "kind": kind, "size": size, "file": name}
        (folder / CARD).write_text(json.dumps(card, indent=2, sort_keys=True) + "\n")

    seal(to, write)
    return to


def is_brought(directory: Path) -> bool:
    """Whether `bring` made this folder."""
    return (directory / CARD).is_file()


def load(directory: Path, device: str = "cpu") -> Extractor:
    """The extractor that `bring` put at `directory`.

    Raises:
        CheckpointError: the folder is damaged, or its weights have another digest than its manifest says.
    """
    try:
        card = json.loads((directory / CARD).read_text())
        name, kind, size = str(card["file"]), str(card["kind"]), card["size"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CheckpointError(f"{directory / CARD} is no extractor: {error!r}; bring it again") from error
    verify(directory, (name, CARD))
    if card.get("format") != FORMAT or kind not in KINDS:
        raise CheckpointError(f"{directory / CARD} is of another format or kind ({kind!r}); bring it again")
    path = directory / name
    return _load(kind, size, path, sha256(path), device)


def _load(kind: str, size: int | None, path: Path, digest: str, device: str) -> Extractor:
    try:
        if kind in _RESNETS:
            return _resnet(kind, path, digest, device)
        if kind == "inception-v3":
            return _inception_v3(path, digest, device)
        if kind == "exported":
            return _exported(path, digest, device)
        module = _script(path, device)
    except (RuntimeError, ValueError, LookupError, TypeError, OSError, AttributeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{path} does not hold a {kind}: {reason}; give the file of that network") from error
    except Exception as error:  # unpickling errors and those of export have no base of their own
        raise CheckpointError(f"{path} does not hold a {kind}: {type(error).__name__}; give its file") from error
    if kind == FID_INCEPTION:
        return _fid_inception(module, digest, device)
    rule = "none" if size is None else f"bilinear-antialias-{size}"
    prepare = to_float if size is None else (lambda images: resized(images, size))
    return _free_form(kind, digest, rule, prepare, module, device)


def _resnet(kind: str, path: Path, digest: str, device: str) -> Extractor:
    from torchvision import models

    weights = _weights(path)
    network = getattr(models, kind)(weights=None, num_classes=len(weights["fc.weight"]))
    mean, deviation = (torch.tensor(values, device=device).view(3, 1, 1) for values in _IMAGENET)
    return _torchvision(
        kind, network, weights, digest, device, 224, lambda pixels: ((pixels + 1) / 2 - mean) / deviation
    )


def _inception_v3(path: Path, digest: str, device: str) -> Extractor:
    from torchvision import models

    weights = _weights(path)
    with_auxiliary = any(name.startswith("AuxLogits.") for name in weights)
    network = models.Inception3(
        num_classes=len(weights["fc.weight"]),
        aux_logits=with_auxiliary,
        transform_input=False,  # its weights were trained on [-1, 1], which is what `resized` gives
        init_weights=False,
    )
    return _torchvision("inception-v3", network, weights, digest, device, 299, lambda pixels: pixels)


def _torchvision(
    kind: str,
    network: Any,
    weights: dict[str, Tensor],
    digest: str,
    device: str,
    size: int,
    normalise: Callable[[Tensor], Tensor],
) -> Extractor:
    """A torchvision classifier that ends in `fc`: what enters that layer are the features."""
    network.load_state_dict(weights, strict=True)
    head, network.fc = network.fc, nn.Identity()
    network.eval().requires_grad_(False).to(device)
    head.requires_grad_(False).to(device)
    return Extractor(
        task=kind,
        digest=digest,
        resize=f"bilinear-antialias-{size}",
        prepare=lambda images: normalise(resized(images, size)),
        observe=network,
        classify=lambda prepared: head(network(prepared)).softmax(1),
        device=torch.device(device),
    )


def _exported(path: Path, digest: str, device: str) -> Extractor:
    program = torch.export.load(path)
    (name,) = program.graph_signature.user_inputs  # one input: the images
    shape = next(node for node in program.graph.nodes if node.name == name).meta["val"].shape
    batch, channels, height, width = (side if isinstance(side, int) else None for side in shape)
    module: Any = program.module().to(device)
    if channels == 3 and height is not None and height == width:
        rule, prepare = f"bilinear-antialias-{height}", lambda images: resized(images, int(height))
    else:
        rule, prepare = "none", to_float
    run = module if batch is None else (lambda prepared: _in_batches_of(int(batch), module, prepared))
    return _free_form("exported", digest, rule, prepare, run, device)


def _in_batches_of(size: int, module: Any, prepared: Tensor) -> Any:
    """Outputs of a module that takes `size` images at a time and no other number; the last batch is filled up."""
    num = len(prepared)
    missing = -num % size if num else size
    filled = torch.cat([prepared, prepared.new_zeros(missing, *prepared.shape[1:])])
    found = [module(part) for part in torch.split(filled, size)]
    if isinstance(found[0], tuple | list):
        return tuple(torch.cat([outputs[i] for outputs in found])[:num] for i in range(len(found[0])))
    return torch.cat(found)[:num]


def _free_form(
    kind: str, digest: str, rule: str, prepare: Callable[[Tensor], Tensor], run: Any, device: str
) -> Extractor:
    """A module that returns features, or features and logits."""

    def observe(prepared: Tensor) -> Tensor:
        found = run(prepared)
        features: Tensor = found[0] if isinstance(found, tuple | list) else found
        return features

    def classify(prepared: Tensor) -> Tensor:
        found = run(prepared)
        if not isinstance(found, tuple | list) or len(found) < 2:
            raise ProtocolError(
                f"extractor {kind!r} returns features alone, so inception_score is not defined; "
                "take a module that returns (features, logits)"
            )
        logits: Tensor = found[1]
        return logits.softmax(1)

    return Extractor(kind, digest, rule, prepare, observe, classify, torch.device(device))


def _fid_inception(module: Any, digest: str, device: str) -> Extractor:
    return Extractor(
        task=FID_INCEPTION,
        digest=digest,
        resize="inside-the-network",
        prepare=lambda images: images.expand(-1, 3, -1, -1),
        observe=lambda images: module(images, return_features=True),
        classify=lambda images: module(images, no_output_bias=True),
        device=torch.device(device),
    )


def _script(path: Path, device: str) -> Any:
    with warnings.catch_warnings():  # the literature's file is of this kind, deprecated or not
        warnings.filterwarnings("ignore", ".*torch.jit.load.*is deprecated", FutureWarning)
        return torch.jit.load(str(path), map_location=device).eval()  # type: ignore[no-untyped-call]


def _weights(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return dict(load_file(path))
    found = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(found, dict) or "fc.weight" not in found:
        raise ValueError("it is no state dict with an fc.weight")
    return found
