"""A run that is asked to end saves first, and goes on later as if it had not been asked."""

import os
import signal
from pathlib import Path

import pytest
import torch
from conftest import tiny_config

from genray.checkpoint import CHECKPOINTS, load, step_name
from genray.config import Train
from genray.data.images import ImageSet
from genray.distributed import World
from genray.preemption import Request, Stopped, sigterm_asks
from genray.storage import RunFolder
from genray.trainer import train

CPU = World(0, 1, torch.device("cpu"))
CONFIG = tiny_config(train=Train(num_steps=40, global_batch_size=16, checkpoint_every=30, log_every=2, sample_every=0))


def test_a_run_that_gets_sigterm_loses_no_step_and_ends_bit_identical(tmp_path: Path, digits: ImageSet):
    whole, halves = RunFolder.open(str(tmp_path), "whole"), RunFolder.open(str(tmp_path), "halves")
    train(CONFIG, digits, whole, CPU)
    times = iter(range(100))
    with sigterm_asks() as asked, pytest.raises(Stopped):

        def at_step_22() -> Request:
            if next(times) == 10:
                os.kill(os.getpid(), signal.SIGTERM)
            return asked()

        train(CONFIG, digits, halves, CPU, at_step_22)
    assert halves.names(CHECKPOINTS)[-1] == step_name(22)
    assert train(CONFIG, digits, halves, CPU).resumed_from == 22
    wanted, found = load(whole, 40).tensors, load(halves, 40).tensors
    assert [name for name in wanted if not torch.equal(wanted[name], found[name])] == []


def test_a_second_sigterm_ends_a_run_at_once():
    with sigterm_asks() as asked, pytest.raises(Stopped):
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked() == "stop"
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_node_that_will_be_taken_away_asks_for_a_checkpoint_and_training_goes_on(tmp_path: Path, digits: ImageSet):
    folder = RunFolder.open(str(tmp_path), "warned")
    times = iter(range(100))
    outcome = train(CONFIG, digits, folder, CPU, lambda: "save" if next(times) == 3 else "go on")
    assert outcome.step == 40
    assert folder.names(CHECKPOINTS) == [step_name(step) for step in (8, 30, 40)]
