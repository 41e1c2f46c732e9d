"""The loop: batch, phases, EMA, log, snapshot, checkpoint. It never asks what it trains."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from genray import cpu, distributed, optim
from genray.anneal import annealed
from genray.checkpoint import Checkpoint, Store, best_whole, latest, load, store_for
from genray.compiled import compile_all
from genray.config import Config, differences, per_rank_batch_size
from genray.data.images import ImageSet
from genray.data.mix import training_images
from genray.data.sampler import Loader, Sampler
from genray.distributed import World
from genray.ema import EMA
from genray.errors import DivergenceError, ResumeError
from genray.evaluation.features import Extractor
from genray.health import Monitor
from genray.health_signals import SKIPPED
from genray.meter import Meter
from genray.objectives import Batch, Networks, Phase
from genray.preemption import Asked, Request, Stopped, go_on
from genray.progress import Progress, emulates_bf16, hardware
from genray.sampling import beside, generate, grid, latents, reconstruct
from genray.snapshot import Snapshot
from genray.start import build_frozen, build_networks
from genray.step import PhaseState, train_step
from genray.storage import RunFolder
from genray.streams import Draws, derive_seed, seed_default
from genray.tracking import JsonlTracker, NullTracker, Tracker
from genray.transfer import parameter_groups, thaw

GRID_ROWS, MAX_COLUMNS, PAIRS = 8, 10, 4


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    step: int
    samples_seen: int
    resumed_from: int
    metrics: dict[str, float]
    """The last logged values."""
    stopped: str | None = None
    """The health rule that ended the run early, and why; None: it was not."""


@cpu.prepared()
def train(config: Config, images: ImageSet, folder: RunFolder, world: World, asked: Asked = go_on) -> Outcome:
    """One rank of the whole run: trains `config` on `images` in `folder`, from where it was left.

    Raises:
        Stopped: it was asked to end, and has saved what it had.
    """
    tracker: Tracker = JsonlTracker(folder.pull_journal("train"), "train") if world.rank == 0 else NullTracker()
    store = store_for(folder, world.rank)
    return Trainer(config, images, folder, store=store, tracker=tracker, world=world, asked=asked).fit()


def train_here(config: Config, asked: Asked = go_on) -> Outcome:
    """The run on this process alone, with images that are read here.

    Raises:
        Stopped: it was asked to end, and has saved what it had.
    """
    with cpu.prepared():
        folder = RunFolder.open(config.run.storage, config.run.name)
        images = training_images(config.data, config.mix)
        return train(config, images, folder, distributed.current(config.cluster.use_gpu), asked)


class Trainer:
    """One run on one rank; `fit` goes on from the newest checkpoint of the run, if there is one.

    Args:
        config: the run.
        images: its training images.
        folder: where its checkpoints are read from.
        store: where they are written to.
        tracker: where its metrics and grids go.
        world: this rank.
        asked: tells at log points what is asked of the run.
    """

    def __init__(
        self,
        config: Config,
        images: ImageSet,
        folder: RunFolder,
        *,
        store: Store,
        tracker: Tracker,
        world: World,
        asked: Asked = go_on,
    ) -> None:
        self.config, self.images, self.folder, self.world = config, images, folder, world
        self.store, self.tracker, self.asked = store, tracker, asked
        train, objective = config.train, config.objective
        per_rank = per_rank_batch_size(train.global_batch_size, world.world_size)
        self.share = slice(world.rank * per_rank, (world.rank + 1) * per_rank)
        torch.manual_seed(derive_seed(train.seed, "weights"))
        built = build_networks(config, images, folder)
        layout = torch.channels_last if train.channels_last else torch.contiguous_format
        bare = {name: module.to(world.device, memory_format=layout) for name, module in built.items()}  # type: ignore[call-overload]
        self.product: nn.Module = bare[objective.product]
        self.ema = EMA(self.product, train.ema_half_life, train.ema_ramp)
        if train.compile:
            compile_all(bare.values())
        frozen = {name: module.to(world.device) for name, module in build_frozen(config, folder).items()}
        self.networks = Networks(bare, {name: distributed.wrap(module) for name, module in bare.items()}, frozen)
        self.phases = [self._phase_state(phase) for phase in objective.phases]
        self.loader = Loader(
            images,
            Sampler(len(images.images), train.global_batch_size, train.seed),
            seed=train.seed,
            rank_slice=self.share,
            device=world.device,
            flip=config.data.flip,
            crop_padding=config.data.crop_padding,
            channels_last=train.channels_last,
        )
        self.meter = Meter()
        self.monitor = Monitor(config.health)
        self.progress = Progress(train.num_steps, train.global_batch_size, world)
        self.step = 0
        self.logged: dict[str, float] = {}

    @property
    def samples_seen(self) -> int:
        """Real images consumed so far, over all ranks."""
        return self.step * self.config.train.global_batch_size

    def fit(self) -> Outcome:
        """Trains to the last step, or until a health rule stops the run.

        The state is in the newest checkpoint, the product in the newest snapshot.
        """
        self.resume()
        resumed_from = self.step
        if not self.finished:
            self.tracker.event(self.step, "hardware", **hardware(self.world.device))
            if self.config.train.precision == "bf16" and emulates_bf16(self.world.device):
                self.progress.say(
                    "train.precision='bf16': this processor has no instructions for it, and takes several times as "
                    "long as in fp32"
                )
        try:
            self.progress.start(self.step)
            while not self.finished:
                self.advance()
        finally:
            self.close()
        return Outcome(self.step, self.samples_seen, resumed_from, self.logged, self.monitor.stopped)

    @property
    def finished(self) -> bool:
        """Whether the last step is done, or a health rule has stopped the run."""
        return self.step >= self.config.train.num_steps or self.monitor.stopped is not None

    def advance(self) -> None:
        """Trains up to the next checkpoint, all ranks together; `store.wait()` returns when it is written."""
        train, saved = self.config.train, False
        while not saved:
            self.update()
            request: Request = "go on"
            if self._due(train.log_every):
                self.logged = self.log()
                self.store.check()
                request = self.asked()
            if train.sample_every and self._due(train.sample_every):
                self.sample()
            if self._due(train.checkpoint_every):
                self.monitor.score(self.store.scores())
            if self.heed() or request != "go on" or self._due(train.checkpoint_every):
                self.save()
                saved = True
            if request != "go on":
                self.store.wait()
            if request == "stop" and not self.finished:
                raise Stopped

    def close(self) -> None:
        """Ends the progress line and the journal; what is being written is finished.

        Raises:
            OSError: it could not be written.
        """
        self.progress.stop()
        self.tracker.close()
        self.store.finish()

    def update(self) -> None:
        """One step, and the EMA after it."""
        train, seen = self.config.train, self.samples_seen
        total = train.num_steps * train.global_batch_size
        seed_default(derive_seed(train.seed, f"rank {self.world.rank}", self.step), self.world.device)
        now = annealed(self.config, seen)
        factor = self.monitor.past.lr_scale * optim.lr_factor(now.optim, seen, total)
        for state in self.phases:
            if self.config.transfer.on:
                thaw(self.config.transfer, self.networks.bare[state.phase.module], state.optimizer, seen)
            optim.set_rates(state.optimizer, now.optim.phase_lr(state.phase.module) * factor, now.optim.betas)
        with self.progress.waiting_for_data():
            images, labels = self.loader.batch(self.step)
        draws = Draws(
            seed=train.seed,
            step=self.step,
            num_global=train.global_batch_size,
            start=self.share.start,
            stop=self.share.stop,
            device=self.world.device,
        )
        batch = Batch(images=images, labels=labels, step=self.step, samples_seen=seen, draws=draws)
        self.meter.add(train_step(now.objective, self.phases, self.networks, batch, self._autocast()))
        self.step += 1
        self.ema.half_life = now.train.ema_half_life
        self.ema.update(train.global_batch_size, self.samples_seen)

    def log(self) -> dict[str, float]:
        """Means since the last log point over all ranks: the one place where the host waits for the device."""
        for state in self.phases:
            self.meter.set(f"{state.phase.module}/skipped", state.skipped)
            self.meter.set(f"{state.phase.module}/skipped_in_a_row", state.in_a_row)
        values = self.meter.collect()
        in_a_row = [values.pop(f"{state.phase.module}/skipped_in_a_row") for state in self.phases]
        values |= self.monitor.log_point(self.step, values)
        if not self.monitor.answers_skipping(values[SKIPPED]):
            for state, count in zip(self.phases, in_a_row, strict=True):
                self._check_divergence(state, count)
        values["optim/lr"] = self.phases[-1].optimizer.param_groups[0]["lr"]
        values |= self.progress.report(self.step, values)
        self.tracker.metrics(self.step, values)
        return values

    def sample(self) -> None:
        """Pictures of the EMA: images from the same latents at every step, a column a class, with their signals.

        Of an autoencoder also the same training images at every step, each beside what comes back of it.
        """
        module: Any = self.ema.module
        if hasattr(module, "reconstruct"):
            places = torch.linspace(0, len(self.images.images) - 1, GRID_ROWS * PAIRS).round().long()
            images = self.images.images[places]
            back = reconstruct(module, images, self.images.labels[places])
            self.tracker.image(self.step, "samples/reconstructions", grid(beside(images, back), 2 * PAIRS))
        if not hasattr(module, "generate"):
            return
        images, labels = self.draw_samples()
        columns = MAX_COLUMNS if labels is None else int(labels.max()) + 1
        self.tracker.image(self.step, "samples/fixed_z", grid(images, columns))
        self.tracker.metrics(self.step, self.monitor.samples(images, labels, self.extractor))

    @cached_property
    def extractor(self) -> Snapshot | Extractor | None:
        """What the signals of features are taken with; other ranks than 0 have none, and take none."""
        return self.store.extractor(str(self.world.device))

    def draw_samples(self) -> tuple[Tensor, Tensor | None]:
        """Images of the fixed latents, uint8 (N, C, H, W), and their labels (N,), row by row of the grid."""
        module: Any = self.ema.module
        columns = min(module.num_labels, MAX_COLUMNS) or MAX_COLUMNS
        num = GRID_ROWS * columns
        z = latents(num, module.latent_dim, derive_seed(self.config.train.seed, "fixed z"))
        labels = torch.arange(num) % columns if module.num_labels else None
        return generate(module, z, labels), labels

    def heed(self) -> bool:
        """Does what the health rules say after this step; whether the run is another now, and must be saved.

        A rollback takes weights, averages and moments of an earlier step, and counts on: no step is
        repeated, so data, draws and schedules go on, and records of what went wrong stay what they were.
        """
        verdicts = self.monitor.decide(self.step, self._rollback_step)
        for verdict in verdicts:
            fields = {k: v for k, v in asdict(verdict).items() if k != "rule" and v is not None}
            self.tracker.event(self.step, f"health.{verdict.rule}", **fields)
            self.progress.say(f"health, {verdict.action}: {verdict.reason}")
            if verdict.to_step is not None:
                self.restore(load(self.folder, verdict.to_step))
                self.meter = Meter()
        return any(verdict.action != "warn" for verdict in verdicts)

    def save(self) -> None:
        """A checkpoint and a snapshot of this step; they are written while training goes on."""
        for module in (*self.networks.bare.values(), self.ema.module):
            distributed.average_buffers(module)
        self.tracker.flush()
        self.store.put(self.checkpoint(), self.images)

    def checkpoint(self) -> Checkpoint:
        """Everything that a restart needs, on the CPU."""
        tensors = {f"ema/{k}": v for k, v in self.ema.module.state_dict().items()}
        for name, module in self.networks.bare.items():
            tensors |= {f"modules/{name}/{k}": v for k, v in module.state_dict().items()}
        for state in self.phases:
            name = state.phase.module
            tensors |= {f"optim/{name}/{k}": v for k, v in optim.state_tensors(state.optimizer)}
            tensors |= {f"{kind}/{name}": value for kind, value in state.counts.items()}
        tensors |= {f"meter/{k}": v for k, v in self.meter.sums.items()}
        # each tensor a copy: the file must not change while the loop goes on, nor share memory
        on_cpu = {k: v.detach().to("cpu", copy=True).contiguous() for k, v in tensors.items()}
        state_json = {
            "config": self.config.to_dict(),
            "data_digest": self.images.digest,
            "meter_counts": self.meter.counts,
            "world_size": self.world.world_size,
            "health": self.monitor.state(),
        }
        return Checkpoint(self.step, on_cpu, state_json)

    def resume(self) -> None:
        """Takes up the newest whole checkpoint of the run, the same one on every rank.

        Raises:
            ResumeError: it is of another configuration, or of other images.
        """
        found = latest(self.folder, distributed.from_rank_zero)
        if found is None:
            return
        check_same_run(Config.from_dict(found.state["config"]), self.config)
        if found.state["data_digest"] != self.images.digest:
            raise ResumeError(
                f"run.name={self.config.run.name!r} was trained on other images: their digest was "
                f"{found.state['data_digest'][:12]}…, now it is {self.images.digest[:12]}…; choose another run.name"
            )
        self.restore(found)
        for state in self.phases:
            for kind, value in state.counts.items():
                value.copy_(found.tensors[f"{kind}/{state.phase.module}"])
        sums = {k: v.to(self.world.device) for k, v in found.under("meter/").items()}
        self.meter = Meter(sums, dict(found.state["meter_counts"]))
        self.monitor.load(found.state.get("health", {}))
        self.step = found.step

    def restore(self, found: Checkpoint) -> None:
        """Takes weights, averages and moments of `found`; no updates have been skipped in a row any more."""
        self.ema.module.load_state_dict(found.under("ema/"))
        for name, module in self.networks.bare.items():
            module.load_state_dict(found.under(f"modules/{name}/"))
        for state in self.phases:
            state.optimizer.state.clear()
            optim.load_state_tensors(state.optimizer, found.under(f"optim/{state.phase.module}/"))
            state.in_a_row.zero_()

    def _rollback_step(self) -> int | None:
        self.store.wait()
        return best_whole(self.folder)

    def _due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.config.train.num_steps

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.config.train.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.world.device.type, torch.bfloat16)

    def _phase_state(self, phase: Phase) -> PhaseState:
        lr = self.config.optim.phase_lr(phase.module)
        device, module = self.world.device, self.networks.bare[phase.module]
        groups = parameter_groups(module) if self.config.transfer.on else None
        return PhaseState(
            phase=phase,
            optimizer=optim.build(module, self.config.optim, lr, groups),
            skipped=torch.zeros((), device=device),
            in_a_row=torch.zeros((), device=device),
            own_fault=torch.zeros((), dtype=torch.int64, device=device),
        )

    def _check_divergence(self, state: PhaseState, in_a_row: float) -> None:
        if in_a_row < self.config.train.max_skipped:
            return
        faults = distributed.from_all_ranks(int(state.own_fault))
        ranks = [rank for rank, count in enumerate(faults) if count] or list(range(len(faults)))
        raise DivergenceError(
            f"phase {state.phase.module!r} diverged at step {self.step}: {in_a_row:.0f} updates in a row were skipped "
            f"for non-finite losses or gradients, first on rank {ranks[0]}; the weights are those of the last good "
            "update; lower optim.lr, or train in fp32"
        )


def check_same_run(saved: Config, wanted: Config) -> None:
    """Refuses to resume `saved` as `wanted` where that would change its numbers.

    Raises:
        ResumeError: lists the fields that differ.
    """
    if fields := differences(saved, wanted):
        raise ResumeError(
            f"run.name={wanted.run.name!r} exists with another configuration: {'; '.join(fields)}; "
            "use those values to resume it, or another run.name"
        )
