"""Freed memory is kept, and subnormal numbers are zero."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import tiny_config

from genray import cpu
from genray.config import Run, Train
from genray.estimate import seconds_per_step
from genray.trainer import train_here

STEPS = """
import resource, torch
from genray import cpu
if {keep}:
    cpu.prepare()
before = 0
for step in range(40):
    if step == 8:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.ones(2**24) for _ in range(2)]  # 64 MiB each: above every size that glibc keeps by itself
    del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

# more numbers than one thread computes alone, and a backward pass whose gradients, 1e-40, are subnormal
PRODUCTS = """
import torch
from genray import cpu
cpu.prepare()
torch.set_num_threads(2)
tiny = torch.full((1000, 1000), 1e-30, requires_grad=True)
(tiny * 1e-30).mul(1e-10).sum().backward()
for product in (tiny * 1e-10, tiny @ (1e-10 * torch.eye(1000)), tiny.grad):
    print(int(product.count_nonzero()))
"""


def page_faults(keep: bool) -> int:
    done = subprocess.run([sys.executable, "-c", STEPS.format(keep=keep)], capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_blocks_that_a_step_frees_serve_the_next_without_page_faults() -> None:
    assert page_faults(keep=True) < page_faults(keep=False) / 5


def test_products_below_the_smallest_normal_number_are_zero_in_every_thread() -> None:
    done = subprocess.run([sys.executable, "-c", PRODUCTS], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "0", "0"]


def test_a_thread_that_is_shared_has_its_subnormal_numbers_back_even_after_a_failure() -> None:
    with pytest.raises(RuntimeError, match="stopped"), cpu.prepared():
        assert sys.float_info.min / 2 == 0
        raise RuntimeError("stopped")
    assert sys.float_info.min / 2 > 0


def test_training_leaves_the_process_its_subnormal_numbers(tmp_path: Path) -> None:
    config = tiny_config(
        run=Run(name="here", storage=str(tmp_path)), train=Train(num_steps=1, global_batch_size=16, sample_every=0)
    )
    train_here(config)
    seconds_per_step(config, num_steps=1)
    assert sys.float_info.min / 2 > 0
