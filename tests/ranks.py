"""Several gloo ranks on this machine, for tests of what ranks do together."""

import faulthandler
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run_ranks(function: Callable[..., Any], world_size: int, *arguments: Any) -> list[Any]:
    """What `function(*arguments)` returns on each rank of a gloo group, in order of rank."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_one_rank, (world_size, folder, function, arguments), nprocs=world_size)
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(world_size)]


def _one_rank(rank: int, world_size: int, folder: str, function: Callable[..., Any], arguments: Any) -> None:
    faulthandler.enable()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world_size)
    try:
        torch.save(function(*arguments), Path(folder) / f"{rank}.pt")
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # all is done and written: now and then libtorch's threads abort a process whose Python is taken down
