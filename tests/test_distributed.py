"""What a process of several ranks may take for the word of all."""

import socket
import threading

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks
from torch import nn

from genray import distributed
from genray.errors import ClusterError


def free_address() -> tuple[str, int]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return "127.0.0.1", int(free.getsockname()[1])


def parted(meeting: tuple[str, int]) -> tuple[float, list[str]]:
    """The mean rank of those that have joined, and what each collective says once their group is taken down."""
    rank = dist.get_rank()
    dist.destroy_process_group()
    distributed.join(*meeting, rank, 2, use_gpu=False)
    together = distributed.mean(torch.tensor([float(rank)])).item()
    distributed.from_all_ranks(rank)
    taker = threading.Thread(target=dist.destroy_process_group)
    taker.start()
    taker.join()
    said = []
    for ask in (
        lambda: distributed.mean(torch.ones(1)),
        lambda: distributed.gather(torch.ones(1)),
        lambda: distributed.average_buffers(nn.BatchNorm1d(1)),
        lambda: distributed.from_rank_zero(0),
        lambda: distributed.from_all_ranks(0),
        lambda: distributed.wrap(nn.Linear(1, 1)),
    ):
        with pytest.raises(ClusterError) as caught:
            ask()
        said.append(str(caught.value))
    distributed.leave()
    assert distributed.from_all_ranks(rank) == [rank]
    return together, said


def test_rank_whose_group_is_taken_down_does_not_take_its_own_numbers_for_those_of_all() -> None:
    for together, said in run_ranks(parted, 2, free_address()):
        assert together == 0.5
        assert len(said) == 6 and all("group of 2 ranks" in each for each in said)
