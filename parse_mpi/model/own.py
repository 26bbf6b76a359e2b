"""Own encoders: modules that a function of the user's makes, and what they must be like to serve (docs/encoders.md)."""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Callable
from difflib import get_close_matches
from functools import lru_cache
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parameter import is_lazy

from parse_mpi.job import OwnEncoder
from parse_mpi.model.shapes import Shape
from parse_mpi.model.trunks import Trunk

SAMPLES = 4  # that an encoder is tried on
AGREEMENT = 1e-4  # relative and absolute: how near the same samples must come out in another batch or under vmap


class EncoderError(Exception):
    """An own encoder that can't serve, worded for the user."""


class OwnTrunk(Trunk):
    """The user's module inside a trunk. Raises EncoderError where there is none."""

    def __init__(self, encoder: OwnEncoder, shape: Shape):
        super().__init__()
        call = f"{encoder.factory}({shape}{''.join(f', {key}=...' for key in encoder.options)})"
        try:
            module = load_factory(encoder.factory, encoder.file)(shape, **encoder.options)
        except EncoderError:
            raise
        except Exception as error:
            raise EncoderError(f"{call} raises {_told(error)}") from error
        if not isinstance(module, nn.Module):
            raise EncoderError(f"{call} gives {type(module).__name__}; it must give a torch.nn.Module")
        width = getattr(module, "width", None)
        if not isinstance(width, int) or width < 1:
            raise EncoderError(
                f"the module of {call} needs an attribute `width`: how many values it gives for a sample"
            )
        self.module = module
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.module(x)
        return h


@lru_cache
def load_factory(factory: str, file: str | None) -> Callable[..., object]:
    """The function of a dotted name, from a file or from an installed module; a file is read once."""
    module_name, _, name = factory.rpartition(".")
    source = file or f"the module {module_name}"
    try:
        module = _load_file(file) if file else importlib.import_module(module_name)
    except Exception as error:
        beside = "" if file else f"{module_name.replace('.', '/')}.py does not lie beside the job file, and "
        raise EncoderError(f"{beside}{source} can't be imported: {_told(error)}") from error
    found = getattr(module, name, None)
    if not callable(found):
        close = get_close_matches(name, vars(module), 1)
        raise EncoderError(f"{source} has no function {name!r}" + (f"; did you mean {close[0]!r}?" if close else ""))
    function: Callable[..., object] = found
    return function


def source_digest(encoder: OwnEncoder) -> str:
    """sha256 (hex) of the Python file that the factory stands in; of nothing where it has none."""
    load_factory(encoder.factory, encoder.file)
    spec = None if encoder.file else find_spec(encoder.factory.rpartition(".")[0])
    path = encoder.file or (spec.origin if spec else None)
    return hashlib.sha256(Path(path).read_bytes() if path and Path(path).is_file() else b"").hexdigest()


def fault(encoder: OwnEncoder, shape: Shape, *, dtype: str, stacked: bool) -> str:
    """What keeps an own encoder from serving for samples of this shape; empty where nothing does.

    stacked: it is to run for many agents at once by torch.vmap.
    """
    try:
        trunk, again = _drawn(encoder, shape, dtype), _drawn(encoder, shape, dtype)
        with torch.device("meta"):  # as engines make it, which hand it the values of its parameters
            skeleton = OwnTrunk(encoder, shape)
    except EncoderError as error:
        return str(error)
    return _fault_of_module(trunk, again) or _fault_of_values(trunk, skeleton, shape, dtype) or (
        _fault_of_vmap(trunk, skeleton, shape, dtype) if stacked else ""
    )  # fmt: skip


def _fault_of_module(trunk: OwnTrunk, again: OwnTrunk) -> str:
    """What is wrong before a sample has been seen."""
    if lazy := [name for name, value in trunk.module.named_parameters() if is_lazy(value)]:
        return f"its parameter {lazy[0]} has no shape before it has seen samples: make it from the shape of a sample"
    if buffers := [name for name, _ in trunk.module.named_buffers()]:
        listed = ", ".join(buffers)
        return f"its module has buffers ({listed}), which would neither mix nor be saved: GroupNorm has none"
    for (name, value), other in zip(trunk.module.named_parameters(), again.module.parameters(), strict=True):
        if not value.requires_grad:
            return f"its parameter {name} asks for no gradient, but agents train every parameter"
        if not torch.equal(value, other):
            return f"its parameter {name} starts elsewhere each time: draw it from PyTorch's default generator only"
    return ""


def _fault_of_values(trunk: OwnTrunk, skeleton: OwnTrunk, shape: Shape, dtype: str) -> str:
    x = _samples(shape, dtype)
    try:
        out, repeated, alone = trunk(x), trunk(x), trunk(x[:1])
    except Exception as error:
        return f"its module fails on samples {[SAMPLES, *shape]} or on one of them: {_told(error)}"
    if tuple(out.shape) != (SAMPLES, trunk.width):
        return (
            f"its module gives {list(out.shape)} for {SAMPLES} samples; with its width it is {[SAMPLES, trunk.width]}"
        )
    try:
        functional_call(skeleton, dict(trunk.named_parameters()), (x,))
    except Exception as error:
        return f"its module keeps tensors that are no parameters ({_told(error)}): make them where they are used"
    if not torch.equal(out, repeated):
        return "its module gives other values for the same samples the second time: leave dropout and noise out"
    if not torch.allclose(out[:1], alone, rtol=AGREEMENT, atol=AGREEMENT):
        return "what its module gives for a sample depends on the others in the batch: normalise each by itself"
    if not out.requires_grad and any(True for _ in trunk.parameters()):
        return "no gradient reaches the parameters of its module"
    return ""


def _fault_of_vmap(trunk: OwnTrunk, skeleton: OwnTrunk, shape: Shape, dtype: str) -> str:
    parameters = {name: torch.stack([value.detach()] * 2) for name, value in trunk.named_parameters()}
    x = _samples(shape, dtype)

    def call(values: dict[str, Tensor], samples: Tensor) -> Tensor:
        out: Tensor = functional_call(skeleton, values, (samples,))
        return out

    say = "say `engine: loop`, or write it with operations that torch.vmap knows"
    try:
        both = torch.vmap(call)(parameters, torch.stack([x, x]))
    except Exception as error:
        return f"its module can't run for many agents at once ({_told(error)}): {say}"
    if not torch.allclose(both, trunk(x).detach().expand_as(both), rtol=AGREEMENT, atol=AGREEMENT):
        return f"its module gives other values where it runs for many agents at once: {say}"
    return ""


def _drawn(encoder: OwnEncoder, shape: Shape, dtype: str) -> OwnTrunk:
    """The trunk from a seed of its own; PyTorch's generator is given back as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return OwnTrunk(encoder, shape).to(getattr(torch, dtype))


def _samples(shape: Shape, dtype: str) -> Tensor:
    return torch.randn(SAMPLES, *shape, generator=torch.Generator().manual_seed(0)).to(getattr(torch, dtype))


def _load_file(file: str) -> ModuleType:
    name = f"own_encoders_{hashlib.sha256(file.encode()).hexdigest()[:16]}"
    spec = spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError("it is no Python file")
    module = module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and the like look their module up there
    spec.loader.exec_module(module)
    return module


def _told(error: Exception) -> str:
    """An error in one line."""
    first = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
