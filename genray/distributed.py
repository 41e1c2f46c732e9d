"""The only place that knows torch.distributed. One process is a world of one: every call an identity."""

import os
import socket
import warnings
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from genray.errors import ClusterError

TIMEOUT = timedelta(seconds=600)
"""Of the meeting of ranks, and of every collective."""
_ranks = 1


@dataclass(frozen=True)
class World:
    """Who this process is among the ranks of a run, and what it computes on."""

    rank: int
    world_size: int
    device: torch.device


def current(use_gpu: bool) -> World:
    """The world that Ray has set up; a world of one where nobody has."""
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if use_gpu else torch.device("cpu")
    if use_gpu:
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        return World(0, 1, device)
    return World(dist.get_rank(), dist.get_world_size(), device)


def join(host: str, port: int, rank: int, size: int, *, use_gpu: bool) -> None:
    """Makes this process one of `size` ranks, which meet at rank 0.

    That listens at `host` alone. Torch by itself would listen on every address of the machine, and it asks nobody who
    they are.

    Args:
        host: address of the machine of rank 0, by which the others reach it.
        port: a free one.
        rank: of this process.
        size: ranks in all.
        use_gpu: NCCL between GPUs, and otherwise gloo.
    """
    listener = None
    if rank == 0:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=1024).detach()
    store = dist.TCPStore(  # type: ignore[attr-defined]
        host, port, size, is_master=rank == 0, timeout=TIMEOUT, wait_for_workers=False, master_listen_fd=listener
    )
    backend = "nccl" if use_gpu else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
    global _ranks
    _ranks = size


def leave() -> None:
    """Makes this process a world of one again, where it was among ranks."""
    global _ranks
    _ranks = 1
    if dist.is_initialized():
        dist.destroy_process_group()


def alone() -> bool:
    """Whether this process is a world of one.

    Raises:
        ClusterError: it had joined others, and their group was taken down beneath it: a mean of its own numbers would
            pass for that of all.
    """
    if dist.is_initialized():
        return dist.get_world_size() == 1
    if _ranks > 1:
        raise ClusterError(f"the group of {_ranks} ranks that this process had joined is gone; the run starts again")
    return True


def wrap(module: nn.Module) -> nn.Module:
    """`module`, averaging its gradients over ranks at the end of each backward pass.

    Buffers are not synchronised at every forward: that breaks two forwards before a backward on
    CUDA and costs a collective each. `average_buffers` does it where they are read.
    """
    if alone() or not any(p.requires_grad for p in module.parameters()):
        return module
    # weights with one input channel have two descriptions of one channels-last layout, and DDP takes them for two
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    return DistributedDataParallel(module, forward_sync_buffers=False)


def no_sync(module: nn.Module) -> AbstractContextManager[None]:
    """Within the block gradients add up on each rank; the next backward outside averages the sum."""
    if isinstance(module, DistributedDataParallel):
        context: AbstractContextManager[None] = module.no_sync()
        return context
    return nullcontext()


def mean(values: Tensor) -> Tensor:
    """Mean of `values` over ranks, in place."""
    if not alone():
        dist.all_reduce(values)
        values /= dist.get_world_size()
    return values


def gather(values: Tensor) -> Tensor:
    """The rows of all ranks in order of rank, (world_size * B, ...); gradients of all ranks go back to each row's own.

    Every rank has the same number of rows, and calls it as often as the others.
    """
    if alone():
        return values
    gathered: Tensor = _Gather.apply(values)
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        ctx.num = len(values)
        parts = [torch.empty_like(values, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, values.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total[dist.get_rank() * ctx.num :][: ctx.num]


def average_buffers(module: nn.Module) -> None:
    """Floating-point buffers (running statistics of batch norm) become their mean over ranks, in place."""
    if alone():
        return
    buffers = [b for b in module.buffers() if b.is_floating_point()]
    if not buffers:
        return
    flat = mean(torch.cat([b.flatten() for b in buffers]))
    for buffer, values in zip(buffers, torch.split(flat, [b.numel() for b in buffers]), strict=True):
        buffer.copy_(values.view_as(buffer))


def from_rank_zero(value: Any) -> Any:
    """Rank 0's `value`, on every rank."""
    if alone():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def from_all_ranks(value: Any) -> list[Any]:
    """Every rank's `value`, in order of rank."""
    if alone():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
