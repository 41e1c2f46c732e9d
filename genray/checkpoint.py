"""All that is needed to go on as if nothing had happened, in sealed folders of the run."""

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from genray import snapshot
from genray.config import Config
from genray.data.images import ImageSet
from genray.errors import CheckpointError, ProtocolError
from genray.evaluation.features import Extractor
from genray.evaluation.protocol import Score
from genray.evaluation.scoring import load_extractor, read_scores
from genray.manifest import seal, sweep, verify
from genray.objectives import classifier_of
from genray.snapshot import Snapshot
from genray.storage import RunFolder

TENSORS, STATE = "state.safetensors", "state.json"
CHECKPOINTS, SNAPSHOTS, SCORES, EXTRACTOR = "checkpoints", "snapshots", "scores", "extractor"
BEST = "best.json"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after `step` steps."""

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]
    """JSON values."""

    def under(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin with `prefix`, by the rest of their names."""
        return {name.removeprefix(prefix): t for name, t in self.tensors.items() if name.startswith(prefix)}


def step_name(step: int) -> str:
    """Folder name of a checkpoint or snapshot; names sort as steps do."""
    return f"step-{step:09d}"


def step_of(name: str) -> int:
    """The step that a folder name from `step_name` says."""
    return int(name.removeprefix("step-"))


class Store(Protocol):
    """Where the trainer puts its state; ranks above 0 have one that does nothing."""

    def put(self, checkpoint: Checkpoint, images: ImageSet) -> None: ...

    def check(self) -> None: ...

    def wait(self) -> None: ...

    def finish(self) -> None: ...

    def scores(self) -> dict[int, list[Score]]: ...

    def extractor(self, device: str) -> Snapshot | Extractor | None: ...


class NullStore:
    """What ranks above 0 write to."""

    def put(self, checkpoint: Checkpoint, images: ImageSet) -> None:
        pass

    def check(self) -> None:
        pass

    def wait(self) -> None:
        pass

    def finish(self) -> None:
        pass

    def scores(self) -> dict[int, list[Score]]:
        return {}

    def extractor(self, device: str) -> Snapshot | Extractor | None:
        return None


class FolderStore:
    """Checkpoints and snapshots in the folder of a run.

    A thread writes them, one step after another, while training goes on: a run that is killed meanwhile goes on
    from the step before.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self._scores: dict[int, list[Score]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def put(self, checkpoint: Checkpoint, images: ImageSet) -> None:
        """Begins to write a checkpoint and the snapshot that goes with it; older ones go, but for the best.

        Raises:
            OSError: what was put before could not be written.
        """
        self.wait()
        self._writing = self._thread.submit(self._write, checkpoint, images)

    def check(self) -> None:
        """Returns at once.

        Raises:
            OSError: what was put could not be written.
        """
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Returns when all that was put is written.

        Raises:
            OSError: it could not be.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def finish(self) -> None:
        """Returns when all that was put is written, and the storage has the journal to its end.

        Raises:
            OSError: it could not be.
        """
        self.wait()
        self.folder.push_journal("train")

    def _write(self, checkpoint: Checkpoint, images: ImageSet) -> None:
        config = Config.from_dict(checkpoint.state["config"])
        weights = checkpoint.under("ema/")
        if name := classifier_of(config.objective):
            weights |= {f"{name}/{k}": v for k, v in checkpoint.under(f"modules/{name}/").items()}
        self.save_snapshot(weights, config, checkpoint.step, images)
        self.save(checkpoint)
        self.prune(config.train.keep, best_step(self.folder))

    def save(self, checkpoint: Checkpoint) -> None:
        """Writes one checkpoint; whole, or not at all."""
        relative = f"{CHECKPOINTS}/{step_name(checkpoint.step)}"

        def write(folder: Path) -> None:
            save_file(checkpoint.tensors, folder / TENSORS)
            (folder / STATE).write_text(json.dumps({"step": checkpoint.step, **checkpoint.state}, sort_keys=True))

        seal(self.folder.local / relative, write)
        self.folder.push(relative)

    def save_snapshot(self, weights: Mapping[str, Tensor], config: Config, step: int, images: ImageSet) -> None:
        """Writes the snapshot of one step."""
        relative = f"{SNAPSHOTS}/{step_name(step)}"
        snapshot.save(
            self.folder.local / relative,
            weights,
            config,
            step=step,
            samples_seen=step * config.train.global_batch_size,
            classes=images.classes,
            data_digest=images.digest,
        )
        self.folder.push(relative)
        self.folder.push_journal("train")

    def prune(self, keep: int, best_step: int | None) -> None:
        """Deletes all checkpoints and snapshots but the last `keep` and the one of `best_step`, and halves of them."""
        for kind in (CHECKPOINTS, SNAPSHOTS):
            if self.folder.remote is None:  # into a scratch folder others may be copying one just now
                sweep(self.folder.local / kind)
            for name in self.folder.names(kind)[:-keep]:
                if step_of(name) != best_step:
                    self.folder.remove(f"{kind}/{name}")

    def scores(self) -> dict[int, list[Score]]:
        """Scores of the snapshots that have been scored so far, by step; one that cannot be read is only logged."""
        for name in self.folder.names(SCORES):
            step = step_of(name.removesuffix(".json"))
            if step not in self._scores:
                try:
                    self._scores[step] = read_scores(self.folder.pull(f"{SCORES}/{name}"))
                except (OSError, ProtocolError) as error:
                    logger.warning("a score is left out of the run's health: %s", error)
        return self._scores

    def extractor(self, device: str) -> Snapshot | Extractor | None:
        """What gives features, where the job has put it into the folder; one that cannot be read is only logged."""
        place = self.folder.local / EXTRACTOR
        try:
            # not pulled over one that is here: a score may be taken with it just now
            place = place if place.is_dir() else self.folder.pull(EXTRACTOR)
            return load_extractor(place, device) if place.is_dir() else None
        except (OSError, CheckpointError) as error:
            logger.warning("features of the samples are not watched: %s", error)
            return None


def store_for(folder: RunFolder, rank: int) -> Store:
    """The store of a rank: only rank 0 writes."""
    return FolderStore(folder) if rank == 0 else NullStore()


def best_step(folder: RunFolder) -> int | None:
    """Step of the best-scored snapshot so far, as whoever scores them noted it; None before any score."""
    path = folder.pull(BEST)
    return int(json.loads(path.read_text())["step"]) if path.is_file() else None


def load(folder: RunFolder, step: int) -> Checkpoint:
    """The checkpoint of `step`.

    Raises:
        CheckpointError: it is torn or damaged.
    """
    return read(folder.pull(f"{CHECKPOINTS}/{step_name(step)}"))


def read(directory: Path) -> Checkpoint:
    """The checkpoint in `directory`.

    Raises:
        CheckpointError: it is torn or damaged.
    """
    verify(directory, (TENSORS, STATE))
    try:
        state = json.loads((directory / STATE).read_text())
        step = state.pop("step")
        if type(step) is not int:
            raise ValueError(f"step is {step!r}")
        return Checkpoint(step, load_file(directory / TENSORS), state)
    except (ValueError, LookupError, TypeError, AttributeError, SafetensorError) as error:
        raise CheckpointError(f"{directory} holds no checkpoint, though its digests are right: {error!r}") from error


def latest(folder: RunFolder, agreed: Callable[[int], int] = int) -> Checkpoint | None:
    """The newest whole checkpoint; None for a run that has none yet.

    A damaged one is named in the log, and the one before it is taken.

    Args:
        folder: of the run.
        agreed: turns this rank's choice of step (-1: none, -2: none is whole) into that of all ranks.

    Raises:
        CheckpointError: there are checkpoints, and not one is whole.
    """
    step = agreed(_newest_whole(folder))
    if step == -2:
        raise CheckpointError(
            f"all checkpoints in {folder.local / CHECKPOINTS} are damaged; "
            "restore one, or start again under another run.name"
        )
    return None if step == -1 else load(folder, step)


def best_whole(folder: RunFolder) -> int | None:
    """Step of the whole checkpoint that goes with the best score, or else of the newest; None: there is none."""
    names, best = folder.names(CHECKPOINTS), best_step(folder)
    best_first = [step_name(best)] if best is not None and step_name(best) in names else []
    return _first_whole(folder, [*best_first, *reversed(names)])


def _newest_whole(folder: RunFolder) -> int:
    names = folder.names(CHECKPOINTS)
    found = _first_whole(folder, reversed(names))
    return found if found is not None else -2 if names else -1


def _first_whole(folder: RunFolder, names: Iterable[str]) -> int | None:
    for name in names:
        try:
            verify(folder.pull(f"{CHECKPOINTS}/{name}"), (TENSORS, STATE))
            return step_of(name)
        except CheckpointError as error:
            logger.warning("refused a checkpoint, and take the one before it: %s", error)
    return None
