"""The complete description of a run: frozen, typed, and refused early.

`Config` has one section a concern. `model` and `objective` are whichever entry of `MODELS` and
`OBJECTIVES` the preset chose; every other section is defined here.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from genray.anneal import Anneal, check_ends
from genray.data import DATASETS
from genray.data.mix import Mix
from genray.errors import ConfigError, unknown
from genray.evaluation import check_names
from genray.fields import as_object, build_section, check_at_least, check_finite, check_no_password
from genray.health_rules import Health as Health
from genray.models import MODELS, Model
from genray.objectives import OBJECTIVES, Objective, classifier_of
from genray.transfer import Transfer


@dataclass(frozen=True, kw_only=True)
class Run:
    """Which run this is, and where its files live."""

    name: str = ""
    """Name of the run; the same name in the same storage resumes. Empty: the preset's name."""
    storage: str = "runs"
    """Directory or URI (s3://, gs://) that holds one folder a run; every node must reach it."""

    def __post_init__(self) -> None:
        check_no_password("run", self, "storage")


@dataclass(frozen=True, kw_only=True)
class Data:
    """The images."""

    name: str = "digits"
    """digits, mnist, fashion-mnist, cifar10, or folder (ImageFolder layout, also inside one zip)."""
    root: str | None = None
    """Folder of the data set's files, or the ImageFolder directory or zip. None: $GENRAY_DATA."""
    image_size: tuple[int, int] | None = None
    """Height and width in pixels. None: the set's own; a folder needs one."""
    channels: Literal[1, 3] | None = None
    """1 grey, 3 colour. None: the set's own; 3 for a folder."""
    train_fraction: float = 0.8
    """Share of a set without splits of its own that is 'train'; the rest is 'test'."""
    split_seed: int = 0
    """Seed of that split."""
    flip: bool = False
    """Mirror each training image left to right with probability 1/2."""
    crop_padding: int = 0
    """Random crop of each training image after padding each side by so many mirrored pixels; 0: none."""
    on_corrupt: Literal["stop", "skip"] = "stop"
    """An image that does not decode: stop and name it, or skip and count it."""
    on_leak: Literal["stop", "warn"] = "stop"
    """Images of `eval.split` that a classifier was trained on, pixel by pixel: stop, or say so and go on."""
    download: bool = False
    """Fetch a named set that is not under `root`; needs a network, and is done by the driver only."""
    cache: str = "~/.cache/genray/data"
    """Folder for decoded images, one file a content digest."""

    def __post_init__(self) -> None:
        if self.name not in DATASETS:
            raise ConfigError(f"data.name: {unknown('data set', self.name, DATASETS)}")
        if self.image_size is not None and min(self.image_size) < 1:
            raise ConfigError(f"data.image_size={self.image_size!r} must be two positive numbers of pixels")
        if self.image_size is None and DATASETS[self.name].shape is None:
            raise ConfigError(f"data.image_size is not set, and {self.name!r} has no size of its own; say e.g. 64 64")
        check_at_least("data", self, 0, "crop_padding")
        if self.crop_padding >= min(self.image_shape[1:]):
            raise ConfigError(
                f"data.crop_padding={self.crop_padding!r} must be below the image's shorter side, "
                f"{min(self.image_shape[1:])} pixels; an eighth of it is usual"
            )
        if not 0 < self.train_fraction < 1:
            raise ConfigError(f"data.train_fraction={self.train_fraction!r} must lie between 0 and 1, e.g. 0.8")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images as the model sees them."""
        channels, height, width = DATASETS[self.name].shape or (3, 0, 0)
        height, width = self.image_size or (height, width)
        return (self.channels or channels, height, width)


@dataclass(frozen=True, kw_only=True)
class Optim:
    """The optimiser of every phase."""

    name: Literal["adam", "adamw"] = "adam"
    """Update rule."""
    lr: float = 2e-4
    """Learning rate."""
    discriminator_lr: float | None = None
    """Learning rate of the discriminator. None: `lr`."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the first and second moment, per step."""
    eps: float = 1e-8
    """Added to the denominator."""
    weight_decay: float = 0.0
    """L2 penalty (adam) or decoupled decay (adamw)."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate falls to zero over the run, after the warm-up."""
    warmup_samples: int = 0
    """Images over which the learning rate rises linearly from zero."""

    def __post_init__(self) -> None:
        check_at_least("optim", self, 0, "eps", "weight_decay", "warmup_samples")
        for name in ("lr", "discriminator_lr"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ConfigError(f"optim.{name}={value!r} must be above 0, e.g. 2e-4")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"optim.betas={self.betas!r} must both lie in [0, 1), e.g. 0.5 0.999")

    def phase_lr(self, module: str) -> float:
        """Peak learning rate of the phase that updates `module`."""
        own = self.discriminator_lr if module == "discriminator" else None
        return self.lr if own is None else own


@dataclass(frozen=True, kw_only=True)
class Train:
    """The loop."""

    num_steps: int = 1000
    """Steps of the run; a step updates every phase that is due."""
    global_batch_size: int = 64
    """Real images per step over all workers; must divide by their number."""
    seed: int = 0
    """Seed of everything random: weights, order of the data, latents, augmentation."""
    checkpoint_every: int = 500
    """Steps between two checkpoints, each with a snapshot; the last step has both in any case."""
    keep: int = 3
    """Latest checkpoints and snapshots that are kept, besides the best-scored one."""
    log_every: int = 50
    """Steps between two log points: the only times the host waits for the device."""
    sample_every: int = 500
    """Steps between two sample grids of the same latents, and of an autoencoder's reconstructions; 0: none."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of forward and backward (autocast); weights and optimiser stay in fp32."""
    channels_last: bool = True
    """Memory layout (N, H, W, C) for convolutions."""
    compile: bool = False
    """Compile all networks (torch.compile), except where gradients are penalised: minutes at first, for a GPU."""
    ema_half_life: float = 10_000
    """Images after which a weight's share in the EMA has halved; 0: no averaging."""
    ema_ramp: float | None = 0.05
    """That is at most this share of the images seen so far, so that a short run's EMA is not of its first weights.
    None: no such limit, for a half-life with a schedule of its own."""
    max_skipped: int = 20
    """Updates of one phase skipped in a row for non-finite gradients before the run aborts."""

    def __post_init__(self) -> None:
        check_at_least(
            "train", self, 1, "num_steps", "global_batch_size", "checkpoint_every", "keep", "log_every", "max_skipped"
        )
        check_at_least("train", self, 0, "seed", "sample_every", "ema_half_life", "ema_ramp")


@dataclass(frozen=True, kw_only=True)
class Eval:
    """How snapshots are scored; everything here but the resources is part of the protocol."""

    extractor: str | None = None
    """Network whose features are compared: a classifier's snapshot folder or NAME@ALIAS, or KIND:PATH of weights,
    e.g. resnet18:weights.pth (see `evaluation/extractors.py`). None: DATASET-classifier@champion of the registry."""
    metrics: tuple[str, ...] = ()
    """Names in `evaluation.METRICS`, or all; the product's first metric is taken in any case. None named: the cheap
    ones."""
    split: str = "test"
    """Split of the data that samples are compared with."""
    num_samples: int = 10_000
    """Images generated per seed."""
    num_seeds: int = 3
    """Times the score is taken, with other latents; its spread comes from these."""
    seed: int = 0
    """First of those seeds."""
    truncation: float = 1.0
    """Factor on the latents; below 1 trades diversity for quality."""
    batch_size: int = 256
    """Images per forward pass."""
    importance_samples: int = 64
    """Latents of each image for the metric nll."""
    classifier_steps: int = 500
    """Batches that a classifier is trained on for the metrics cas and cas_reverse."""
    promote: bool = True
    """Make the model champion if it beats the present one under the same protocol."""
    num_cpus: float = 1
    """Cores that the scoring task asks of Ray."""
    num_gpus: float = 0
    """GPUs that the scoring task asks of Ray."""

    def __post_init__(self) -> None:
        check_at_least("eval", self, 2, "num_samples")
        check_at_least("eval", self, 1, "num_seeds", "batch_size", "importance_samples", "classifier_steps")
        check_at_least("eval", self, 0, "seed", "truncation", "num_cpus", "num_gpus")
        check_names(self.metrics)


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What the run asks of Ray."""

    num_workers: int = 1
    """DDP workers; 0: train in this process, without Ray."""
    min_workers: int | None = None
    """Fewest workers to go on with while nodes are missing, with the same batch of the same images; as nodes come, up
    to `num_workers`. None: exactly `num_workers`."""
    use_gpu: bool = False
    """One GPU a worker (NCCL); otherwise CPU (gloo)."""
    cpus_per_worker: float = 1
    """Cores a worker asks for, and the threads it computes with."""
    max_failures: int = 3
    """Times a dead worker group is restarted from the last checkpoint."""

    def __post_init__(self) -> None:
        check_at_least("cluster", self, 0, "num_workers", "max_failures")
        if not self.cpus_per_worker > 0:
            raise ConfigError(f"cluster.cpus_per_worker={self.cpus_per_worker!r} must be above 0, e.g. 1")
        if self.min_workers is not None and not 1 <= self.min_workers <= self.num_workers:
            raise ConfigError(
                f"cluster.min_workers={self.min_workers!r} must lie between 1 and cluster.num_workers="
                f"{self.num_workers!r}"
            )

    @property
    def sizes(self) -> range:
        """How many workers the run may have at a time; one where it trains without Ray."""
        most = max(1, self.num_workers)
        return range(self.min_workers or most, most + 1)


PictureKind = Literal["interpolation", "classes", "truncation", "styles", "reconstructions", "traversals", "nearest"]
"""What `genray sample --kind` draws of a snapshot, but for the grid, which training draws of fixed latents."""


@dataclass(frozen=True, kw_only=True)
class Tracking:
    """Where the record of the run goes."""

    uri: str | None = None
    """MLflow server or database. None: $MLFLOW_TRACKING_URI, else sqlite:///mlflow.db."""
    experiment: str | None = None
    """MLflow experiment. None: genray/DATASET."""
    pictures: tuple[PictureKind, ...] = ("interpolation", "classes", "truncation", "styles", "traversals", "nearest")
    """Pictures of every snapshot beside its scores, as genray sample --kind draws them, off the training path; those
    that its model cannot make are left out."""

    def __post_init__(self) -> None:
        check_no_password("tracking", self, "uri")


@dataclass(frozen=True, kw_only=True)
class Config:
    """One run, completely."""

    run: Run = field(default_factory=Run)
    data: Data
    model: Model
    objective: Objective
    optim: Optim
    anneal: Anneal = field(default_factory=Anneal)
    transfer: Transfer = field(default_factory=Transfer)
    mix: Mix = field(default_factory=Mix)
    train: Train
    eval: Eval = field(default_factory=Eval)
    health: Health = field(default_factory=Health)
    cluster: Cluster = field(default_factory=Cluster)
    tracking: Tracking = field(default_factory=Tracking)

    def __post_init__(self) -> None:
        try:
            self.model.check(self.data.image_shape)
            self.objective.check(self.model)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        check_ends(self)
        check_finite(self.flat())
        if getattr(self.model, "needs_source", False) and not self.transfer.source:
            raise ConfigError(
                "transfer.source is empty, and this model draws for a tokenizer that was trained before; set it "
                f"to its folder or NAME@ALIAS, e.g. {self.data.name}-{getattr(self.model, 'kind', '')}@champion"
            )
        if self.train.sample_every and self.objective.product == "classifier":
            raise ConfigError(
                f"train.sample_every={self.train.sample_every}: a classifier draws no samples; set it to 0"
            )
        check_names(self.eval.metrics, self.objective.product, classifies=bool(classifier_of(self.objective)))
        self._check_batch()

    def _check_batch(self) -> None:
        batch, sizes = self.train.global_batch_size, self.cluster.sizes
        if batch < 2 and (mmd := getattr(self.objective, "mmd", 0.0)):
            raise ConfigError(
                f"train.global_batch_size={batch} with objective.mmd={mmd!r}: a discrepancy is of pairs of latents, "
                "expected at least 2 images"
            )
        if len(sizes) > 1 and (wrong := [size for size in sizes if batch % size]):
            raise ConfigError(
                f"train.global_batch_size={batch} does not divide by {wrong[0]} workers, and cluster.min_workers="
                f"{sizes[0]} allows for them; use a multiple of {math.lcm(*sizes)}, or raise cluster.min_workers"
            )
        shares = [per_rank_batch_size(batch, size) for size in sizes]
        group = getattr(self.model, "deviation_group", 1)
        if rest := [share for share in shares if share % group]:
            raise ConfigError(
                f"train.global_batch_size={batch} gives a worker {rest[0]} images, no whole groups of "
                f"model.deviation_group={group}, of which the discriminator sees how much they vary; use a multiple of "
                f"{group * math.lcm(*sizes)}, or --model.deviation-group 1"
            )

    @property
    def task(self) -> str:
        """Name of the registered model that this run competes for, e.g. `mnist-generator`."""
        kinds = {"classifier": "classifier", "tokenizer": getattr(self.model, "kind", "")}
        return f"{self.data.name}-{kinds.get(self.objective.product, 'generator')}"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` gives back an equal config."""
        return {f.name: _section_to_dict(f.name, getattr(self, f.name)) for f in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The config that `to_dict` made these values from; unknown fields are refused."""
        sections = {f.name: f for f in dataclasses.fields(cls)}
        for name in as_object("a config", values):
            if name not in sections:
                raise ConfigError(unknown("section", name, sections))
        if missing := [n for n, f in sections.items() if n not in values and f.default_factory is dataclasses.MISSING]:
            raise ConfigError(f"a config lacks {', '.join(missing)}; it was not written by genray, or torn")
        return cls(**{name: _section_from_dict(name, value) for name, value in values.items()})

    def flat(self) -> dict[str, Any]:
        """Values by dotted name, e.g. `train.seed`."""
        return {f"{section}.{key}": v for section, values in self.to_dict().items() for key, v in values.items()}


_TABLES: dict[str, dict[str, type]] = {"model": MODELS, "objective": OBJECTIVES}
_SECTIONS: dict[str, Any] = {f.name: f.type for f in dataclasses.fields(Config) if f.name not in _TABLES}

_FREE_SECTIONS = ("eval", "cluster", "tracking")
_PLACES = ("run.storage", "data.root", "data.cache", "mix.sources", "mix.judge")  # what lies there has a digest
_FREE_FIELDS = (*_PLACES, "data.on_leak", "data.download", "train.keep")


def differences(saved: Config, wanted: Config) -> list[str]:
    """Fields, as `name: saved -> wanted`, that make `wanted` another run than `saved`.

    Fields that leave the numbers alone (storage, workers, tracking, evaluation, health rules that
    do not roll back) may differ, and a run without a schedule may be made longer.
    """
    old, new = saved.flat(), wanted.flat()
    sections = _FREE_SECTIONS if saved.health.rolls_back or wanted.health.rolls_back else (*_FREE_SECTIONS, "health")
    free = set(_FREE_FIELDS) | {name for name in new if name.split(".")[0] in sections}
    if wanted.health.max_rollbacks > saved.health.max_rollbacks:
        free.add("health.max_rollbacks")
    whole_run = wanted.optim.schedule != "constant" or (wanted.anneal.to and not wanted.anneal.samples)
    if not whole_run and wanted.train.num_steps > saved.train.num_steps:
        free.add("train.num_steps")
    names = sorted((old.keys() | new.keys()) - free)
    return [f"{n}: {old.get(n)!r} -> {new.get(n)!r}" for n in names if old.get(n) != new.get(n)]


def per_rank_batch_size(global_batch_size: int, world_size: int) -> int:
    """Images per step of one of `world_size` ranks.

    Raises:
        ConfigError: the batch does not divide.
    """
    share, rest = divmod(global_batch_size, world_size)
    if rest:
        below, above = share * world_size, (share + 1) * world_size
        use = f"{below} or {above}" if below else f"{above}"
        raise ConfigError(
            f"train.global_batch_size={global_batch_size} does not divide by {world_size} workers; use {use}"
        )
    return share


def _section_to_dict(name: str, section: Any) -> dict[str, Any]:
    values = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(section).items()}
    if name in _TABLES:
        kind = next(key for key, cls in _TABLES[name].items() if type(section) is cls)
        values = {"name": kind} | values
    return values


def _section_from_dict(name: str, values: dict[str, Any]) -> Any:
    values = dict(as_object(name, values))
    if name in _TABLES:
        kind = str(values.pop("name", ""))
        if kind not in _TABLES[name]:
            raise ConfigError(f"{name}.name: {unknown(name, kind, _TABLES[name])}")
        cls = _TABLES[name][kind]
    else:
        cls = _SECTIONS[name]
    return build_section(name, cls, values)
