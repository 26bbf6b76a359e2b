"""How large a network's activations are: what bounds the stacks of agents, and how much memory they need."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from parse_mpi.model.shapes import Shape


@torch.no_grad()
def layer_sizes(network: nn.Module, shapes: Mapping[str, Shape]) -> list[int]:
    """How many numbers each layer gives for one more sample, layers in the order in which they run.

    shapes: modality -> sample shape. The network lies on the CPU and runs twice, as some layers give the same for any
    number of samples; on the meta device PyTorch would import 80 MB for that.
    """
    sizes: list[int] = []

    def note(_module: nn.Module, _inputs: object, output: object) -> None:
        sizes.append(_numbers_in(output))

    layers = [module for module in network.modules() if not list(module.children())]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    for count in (1, 2):
        network({m: torch.zeros(count, *shape) for m, shape in shapes.items()})
    for hook in hooks:
        hook.remove()
    runs = len(sizes) // 2
    return [two - one for one, two in zip(sizes[:runs], sizes[runs:], strict=True)]


def _numbers_in(output: object) -> int:
    """How many numbers a layer gives: a tensor, or several, as recurrent ones do."""
    if isinstance(output, Tensor):
        return output.numel()
    return sum(map(_numbers_in, output)) if isinstance(output, (tuple, list)) else 0
