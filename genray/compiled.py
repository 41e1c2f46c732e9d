"""Compiled networks, and where they must not be used."""

import sys
import warnings
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.nn.utils import parametrize


def compile_all(networks: Iterable[nn.Module]) -> None:
    """Has every call of `networks` compiled, in place: names of weights and checkpoints stay what they were.

    Networks whose weights are computed from others, as by spectral normalisation, run as they were written: each pass
    moves what they are computed by, which a compiled backward pass reads afterwards.
    """
    # torch's compiler looks at inputs that are no leaves, such as fakes, and is warned of itself
    warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
    for network in networks:
        if not any(parametrize.is_parametrized(module) for module in network.modules()):
            network.compile()


def uncompiled() -> AbstractContextManager[object]:
    """Within the block compiled networks run as they were written.

    For gradients of gradients, which compiled graphs do not have: some releases of torch raise, others gave
    penalties without a gradient (PyTorch issues 91469 and 181581).
    """
    if "torch._dynamo" not in sys.modules:
        return nullcontext()  # nothing is compiled in this process, and the import takes seconds
    stance: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return stance
