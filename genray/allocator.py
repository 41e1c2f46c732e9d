"""Memory that a step frees stays with the process, for the next step.

glibc gives large blocks back to the kernel when they are freed, and the kernel fills every page with
zeros when it hands them out again: thousands of page faults a step for activations and gradients on a
CPU, 5 % of a DCGAN's step and up to 20 % of a small VAE's (`benchmarks/`). CUDA has an allocator of
torch's own that does not do this.
"""

import ctypes

# parameters of mallopt(3), as malloc.h has them
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
LARGEST_BLOCK = 2**30
LARGEST_TRIM = 2**31 - 1


def keep_freed_memory() -> None:
    """Blocks of up to 1 GiB are reused by this process from now on; without glibc nothing changes."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(MMAP_THRESHOLD, LARGEST_BLOCK)
        mallopt(TRIM_THRESHOLD, LARGEST_TRIM)
