"""The loop: exact resume, world-size invariance, refusal of bad updates."""

import hashlib
import multiprocessing
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import tiny_config
from ranks import run_ranks
from safetensors.torch import load_file

from genray import checkpoint
from genray.config import Config, Data, Train
from genray.data.images import load_images
from genray.distributed import World, current
from genray.errors import CheckpointError, DivergenceError, ResumeError
from genray.models.vae import MLPVAE
from genray.objectives.elbo import ELBO
from genray.storage import RunFolder
from genray.tracking import NullTracker, read_journal
from genray.trainer import Trainer, train

CPU = World(0, 1, torch.device("cpu"))


def run(config: Config, folder: Path) -> RunFolder:
    opened = RunFolder.open(str(folder), config.run.name)
    train(config, load_images(config.data, "train"), opened, current(False))
    return opened


def state_of(folder: RunFolder, step: int) -> dict[str, torch.Tensor]:
    return load_file(folder.local / "checkpoints" / checkpoint.step_name(step) / checkpoint.TENSORS)


def assert_same_state(a: RunFolder, b: RunFolder, step: int) -> None:
    left, right = state_of(a, step), state_of(b, step)
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


def metrics_of(folder: RunFolder) -> dict[tuple[int, str], float]:
    """Values by (step, key), refusing a key that stands twice at one step; the clock's figures left out."""
    found: dict[tuple[int, str], float] = {}
    for entry in read_journal(folder.local / "journal" / "train.jsonl")[0]:
        for key, value in entry.get("metrics", {}).items():
            assert (entry["step"], key) not in found
            found[entry["step"], key] = value
    return {at: value for at, value in found.items() if not at[1].startswith(("perf/", "system/"))}


def batch_norm_config(num_steps: int = 8) -> Config:
    """With batch norm, a schedule, two discriminator steps: everything that has a state."""
    base = tiny_config()
    return replace(
        base,
        model=replace(base.model, generator_norm="batch", discriminator_norm="batch", conditional=True),
        objective=replace(base.objective, gamma=0.0, num_discriminator_steps=2),
        optim=replace(base.optim, schedule="cosine", warmup_samples=32),
        data=replace(base.data, flip=True),
        train=replace(base.train, num_steps=num_steps, checkpoint_every=3, log_every=2, sample_every=0),
    )


def test_run_stopped_at_a_checkpoint_and_resumed_ends_bit_identical(tmp_path):
    config = batch_norm_config()
    whole = run(config, tmp_path / "whole")
    halves = RunFolder.open(str(tmp_path / "halves"), config.run.name)
    images = load_images(config.data, "train")

    class PowerCutError(Exception):
        pass

    class Dying(Trainer):
        def update(self) -> None:
            if self.step == 5:
                raise PowerCutError
            super().update()

    from genray.tracking import JsonlTracker

    tracker = JsonlTracker(halves.local / "journal", "train")
    dying = Dying(config, images, halves, store=checkpoint.FolderStore(halves), tracker=tracker, world=CPU)
    with pytest.raises(PowerCutError):
        dying.fit()
    outcome = train(config, images, halves, CPU)
    assert outcome.resumed_from == 3
    assert_same_state(whole, halves, 8)
    assert metrics_of(whole) == metrics_of(halves)


def _train_until_killed(config: Config, folder: str) -> None:
    torch.set_num_threads(1)
    run(config, Path(folder))


@pytest.mark.slow
def test_run_killed_twice_at_random_steps_ends_bit_identical(tmp_path):
    base = batch_norm_config(num_steps=200)
    config = replace(base, train=replace(base.train, checkpoint_every=20, log_every=5, keep=2))
    spawn = multiprocessing.get_context("spawn")
    whole = spawn.Process(target=_train_until_killed, args=(config, str(tmp_path / "whole")))
    whole.start()
    whole.join()
    folder = RunFolder.open(str(tmp_path / "killed"), config.run.name)
    journal = folder.local / "journal" / "train.jsonl"
    for enough in (35, 110):
        victim = spawn.Process(target=_train_until_killed, args=(config, str(tmp_path / "killed")))
        victim.start()
        while not any(e["step"] >= enough for e in read_journal(journal)[0]):
            assert victim.is_alive()
            time.sleep(0.01)
        os.kill(victim.pid, signal.SIGKILL)
        victim.join()
        assert max(e["step"] for e in read_journal(journal)[0]) < 200
    last = spawn.Process(target=_train_until_killed, args=(config, str(tmp_path / "killed")))
    last.start()
    last.join()
    undisturbed = RunFolder.open(str(tmp_path / "whole"), config.run.name)
    assert_same_state(undisturbed, folder, 200)
    assert metrics_of(undisturbed) == metrics_of(folder)


def test_checkpoint_holds_the_memory_layout_of_the_moments(tmp_path):
    """Fused kernels pair weight and moment by address: a wrong layout shows as another next step."""
    base = tiny_config()
    config = replace(base, train=replace(base.train, num_steps=4, checkpoint_every=4, channels_last=True))
    folder = run(config, tmp_path)
    images = load_images(config.data, "train")
    trainer = Trainer(config, images, folder, store=checkpoint.NullStore(), tracker=NullTracker(), world=CPU)
    trainer.resume()
    for state in trainer.phases:
        for parameter, moments in state.optimizer.state.items():
            assert moments["exp_avg"].stride() == parameter.stride()


def test_damaged_checkpoint_is_refused_by_name_and_the_one_before_it_taken(tmp_path, caplog):
    config = tiny_config()
    folder = run(config, tmp_path)
    path = folder.local / "checkpoints" / checkpoint.step_name(8) / checkpoint.TENSORS
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    found = checkpoint.latest(folder)
    assert found is not None and found.step == 4
    assert f"{path} is damaged" in caplog.text


def test_run_whose_checkpoints_are_all_damaged_is_refused(tmp_path):
    folder = run(tiny_config(), tmp_path)
    for path in folder.local.glob(f"checkpoints/*/{checkpoint.TENSORS}"):
        path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match=r"all checkpoints in .* are damaged"):
        checkpoint.latest(folder)


def test_resume_with_another_config_lists_the_fields(tmp_path):
    config = tiny_config()
    run(config, tmp_path)
    other = replace(config, optim=replace(config.optim, lr=0.5))
    with pytest.raises(ResumeError) as caught:
        run(other, tmp_path)
    assert str(caught.value) == (
        "run.name='tiny' exists with another configuration: optim.lr: 0.001 -> 0.5; "
        "use those values to resume it, or another run.name"
    )


def test_resume_on_other_images_is_refused(tmp_path):
    config = tiny_config()
    folder = run(config, tmp_path)
    images = replace(load_images(config.data, "train"), digest="0" * 64)
    with pytest.raises(ResumeError, match="was trained on other images"):
        train(config, images, folder, CPU)


def test_checkpoint_that_cannot_be_written_ends_the_run_before_the_next_is_due(tmp_path):
    folder = RunFolder.open(str(tmp_path), "tiny")
    (folder.local / "checkpoints").write_text("in the way")
    with pytest.raises(OSError, match="checkpoints"):
        run(vae_config(num_steps=600, checkpoint_every=300), tmp_path)
    assert 300 <= max(e["step"] for e in read_journal(folder.local / "journal" / "train.jsonl")[0]) < 600


def test_only_the_last_checkpoints_and_the_best_are_kept(tmp_path):
    base = tiny_config(train=Train(num_steps=10, global_batch_size=8, checkpoint_every=2, keep=2, sample_every=0))
    folder = RunFolder.open(str(tmp_path), base.run.name)
    (folder.local / checkpoint.BEST).write_text('{"step": 4}')
    run(base, tmp_path)
    names = [checkpoint.step_name(step) for step in (4, 8, 10)]
    assert folder.names("checkpoints") == names
    assert folder.names("snapshots") == names


def test_sample_grid_is_of_the_same_latents_at_every_step(tmp_path, digits):
    config = tiny_config()
    folder = RunFolder.open(str(tmp_path), "tiny")
    trainer = Trainer(config, digits, folder, store=checkpoint.NullStore(), tracker=NullTracker(), world=CPU)
    assert torch.equal(trainer.draw_samples()[0], trainer.draw_samples()[0])


class _Poison:
    """An objective whose loss is infinite at some steps."""

    def __init__(self, inner: ELBO, steps: range) -> None:
        self.inner, self.steps = inner, steps
        self.phases, self.product = inner.phases, inner.product

    def prepare(self, networks, batch):
        return self.inner.prepare(networks, batch)

    def loss(self, phase, part, networks, batch, shared):
        loss, metrics = self.inner.loss(phase, part, networks, batch, shared)
        rank_zero = batch.draws.start == 0
        return (loss * float("inf") if batch.step in self.steps and rank_zero else loss), metrics


def vae_config(**train_fields: object) -> Config:
    fields: dict[str, object] = {
        "num_steps": 6, "global_batch_size": 16, "checkpoint_every": 6, "log_every": 1, "sample_every": 0
    }  # fmt: skip
    return tiny_config(
        model=MLPVAE(latent_dim=4, hidden=16),
        objective=ELBO(),
        train=Train(**(fields | train_fields)),  # type: ignore[arg-type]
    )


def _train_poisoned(config: Config, folder: str, steps: range) -> dict[str, object]:
    world = current(False)
    opened = RunFolder.open(folder, f"{config.run.name}-{world.world_size}")
    images = load_images(config.data, "train")
    trainer = Trainer(config, images, opened, store=checkpoint.NullStore(), tracker=NullTracker(), world=world)
    object.__setattr__(trainer, "config", _with_objective(config, steps))
    weights = []
    try:
        while trainer.step < config.train.num_steps:
            trainer.update()
            weights.append(torch.cat([p.detach().flatten() for p in trainer.product.parameters()]))
            trainer.log()
    except DivergenceError as error:
        return {"error": str(error), "weights": weights}
    return {"error": None, "weights": weights}


def _with_objective(config: Config, steps: range) -> Config:
    changed = replace(config)
    object.__setattr__(changed, "objective", _Poison(config.objective, steps))  # type: ignore[arg-type]
    return changed


def test_non_finite_loss_on_one_rank_skips_the_update_on_all_ranks(tmp_path):
    one, two = run_ranks(_train_poisoned, 2, vae_config(), str(tmp_path), range(2, 4))
    assert one["error"] is None
    for rank in (one, two):
        weights = rank["weights"]
        assert torch.equal(weights[1], weights[2]) and torch.equal(weights[2], weights[3])
        assert not torch.equal(weights[3], weights[4])
        assert weights[-1].isfinite().all()


def test_burst_of_non_finite_losses_aborts_with_step_phase_and_rank(tmp_path):
    result = _train_poisoned(vae_config(max_skipped=3), str(tmp_path), range(2, 99))
    assert result["error"] == (
        "phase 'vae' diverged at step 5: 3 updates in a row were skipped for non-finite losses or gradients, first on "
        "rank 0; the weights are those of the last good update; lower optim.lr, or train in fp32"
    )


def _losses_and_batches(config: Config, folder: str) -> dict[str, object]:
    world = current(False)
    opened = RunFolder.open(folder, f"world-{world.world_size}")
    images = load_images(config.data, "train")
    trainer = Trainer(config, images, opened, store=checkpoint.NullStore(), tracker=NullTracker(), world=world)
    losses, seen = [], []
    for step in range(20):
        seen += [
            hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest() for image in trainer.loader.batch(step)[0]
        ]
        trainer.update()
        values = trainer.log()
        losses.append({k: v for k, v in values.items() if "loss" in k})
    return {"losses": losses, "seen": seen}


def test_one_rank_and_two_ranks_have_the_same_losses_and_share_the_same_samples(tmp_path):
    config = tiny_config(data=Data(name="digits", flip=True))
    one = _losses_and_batches(config, str(tmp_path))
    first, second = run_ranks(_losses_and_batches, 2, config, str(tmp_path))
    for alone, together in zip(one["losses"], first["losses"], strict=True):
        assert alone.keys() == together.keys()
        for key, value in alone.items():
            assert together[key] == pytest.approx(value, abs=1e-5)
    half = config.train.global_batch_size // 2
    for step in range(20):
        whole = one["seen"][step * 2 * half : (step + 1) * 2 * half]
        assert first["seen"][step * half : (step + 1) * half] == whole[:half]
        assert second["seen"][step * half : (step + 1) * half] == whole[half:]


def _discriminator_gradients(config: Config, folder: str) -> list[torch.Tensor]:
    world = current(False)
    opened = RunFolder.open(folder, f"grads-{world.world_size}")
    images = load_images(config.data, "train")
    trainer = Trainer(config, images, opened, store=checkpoint.NullStore(), tracker=NullTracker(), world=world)
    trainer.update()
    return [p.grad.clone() for module in trainer.networks.bare.values() for p in module.parameters()]


def test_gradients_with_r1_on_two_ranks_equal_those_of_one_process(tmp_path):
    config = tiny_config()
    alone = _discriminator_gradients(config, str(tmp_path))
    for rank in run_ranks(_discriminator_gradients, 2, config, str(tmp_path)):
        for ours, whole in zip(rank, alone, strict=True):
            torch.testing.assert_close(ours, whole, atol=1e-6, rtol=0)


def _train_with_batch_norm(config: Config, folder: str, name: str) -> None:
    world = current(False)
    opened = RunFolder.open(folder, name)
    train(config, load_images(config.data, "train"), opened, world)


def test_two_ranks_with_batch_norm_resume_bit_identical(tmp_path):
    config = batch_norm_config(num_steps=6)
    run_ranks(_train_with_batch_norm, 2, config, str(tmp_path), "whole")
    halves = RunFolder.open(str(tmp_path), "halves")
    run_ranks(_train_with_batch_norm, 2, config, str(tmp_path), "halves")
    halves.remove(f"checkpoints/{checkpoint.step_name(6)}")
    run_ranks(_train_with_batch_norm, 2, config, str(tmp_path), "halves")
    assert_same_state(RunFolder.open(str(tmp_path), "whole"), halves, 6)


def test_bf16_training_lowers_the_loss(tmp_path, digits):
    config = vae_config(num_steps=60, precision="bf16", log_every=20)
    folder = run(config, tmp_path)
    losses = [value for (step, key), value in sorted(metrics_of(folder).items()) if key == "vae/loss"]
    assert losses[-1] < 0.95 * losses[0]


@pytest.mark.parametrize("there", [True, False])
def test_bf16_without_instructions_for_it_is_said_to_be_slow(there, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": False, "amx_bf16": there})
    run(vae_config(num_steps=1, precision="bf16"), tmp_path)
    assert ("train.precision='bf16': this processor has no instructions for it" in capsys.readouterr().out) is not there
