"""What training on a CPU needs of its process: memory that a step frees stays for the next, tiny numbers are zero.

glibc gives large blocks back to the kernel when they are freed, and the kernel fills every page with
zeros when it hands them out again: thousands of page faults a step for activations and gradients on a
CPU, 5 % of a DCGAN's step and up to 20 % of a small VAE's (`benchmarks/`). CUDA has an allocator of
torch's own that does not do this.

A product with a subnormal number, one below 1e-38 that is not 0, takes a processor a hundred times as long as
any other. The weights of importance samples make such gradients: without them a step of an IWAE of 50 samples takes
a third to a sixth of the time (`benchmarks/subnormal_numbers.py`).
"""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# parameters of mallopt(3), as malloc.h has them
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
LARGEST_BLOCK = 2**30
LARGEST_TRIM = 2**31 - 1


def prepare() -> None:
    """Has this process reuse blocks of up to 1 GiB, if its C library is glibc, and take subnormal numbers for 0.

    The latter holds for this thread and for those that it starts to compute with, so call it before the first of them:
    a tensor of some thousand numbers starts them.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(MMAP_THRESHOLD, LARGEST_BLOCK)
        mallopt(TRIM_THRESHOLD, LARGEST_TRIM)
    torch.set_flush_denormal(True)


@contextmanager
def prepared() -> Iterator[None]:
    """`prepare` for a process that has more to do: this thread has subnormal numbers again afterwards, if it had them.

    Threads that began to compute in between keep taking them for 0.
    """
    flushed = sys.float_info.min / 2 == 0
    prepare()
    try:
        yield
    finally:
        torch.set_flush_denormal(flushed)
