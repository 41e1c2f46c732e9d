"""Freed memory is kept."""

import subprocess
import sys

STEPS = """
import resource, torch
from genray.allocator import keep_freed_memory
if {keep}:
    keep_freed_memory()
before = 0
for step in range(40):
    if step == 8:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.ones(2**24) for _ in range(2)]  # 64 MiB each: above every size that glibc keeps by itself
    del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(keep: bool) -> int:
    done = subprocess.run([sys.executable, "-c", STEPS.format(keep=keep)], capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_blocks_that_a_step_frees_serve_the_next_without_page_faults() -> None:
    assert page_faults(keep=True) < page_faults(keep=False) / 5
