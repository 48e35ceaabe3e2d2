"""What may be given as a module: wrappers are taken off, and what cannot be read is refused with what to pass."""

from __future__ import annotations

from copy import deepcopy
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized
from torch.optim.swa_utils import AveragedModel

from mpgraph.errors import NetworkError

from .torch_trace import line, titled

WRAPPERS: dict[type[nn.Module], str] = {  # and the attribute that holds the module inside
    torch._dynamo.OptimizedModule: "_orig_mod",
    DataParallel: "module",
    DistributedDataParallel: "module",
    AveragedModel: "module",
}


def usable(module: Any) -> nn.Module:
    """The module itself, without the wrappers around it.

    Raises:
        NetworkError: for anything else than a module whose code and weights can be read.
    """
    if isinstance(module, type) and issubclass(module, nn.Module):
        raise NetworkError(
            f"Network.from_torch takes a torch.nn.Module, got the class {module.__name__}; pass an instance, "
            f"{module.__name__}(...)"
        )
    if not isinstance(module, nn.Module):
        hint = "; write it as the forward of an nn.Module that holds the layers it uses" if callable(module) else ""
        raise NetworkError(f"Network.from_torch takes a torch.nn.Module, got {_described(module)}{hint}")
    module = _inside(module)
    for path, part in module.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            raise NetworkError(
                f"{titled(path, type(part))}: was compiled by torch.jit, which leaves no Python code to read; pass the "
                "module that was given to torch.jit.script or torch.jit.trace"
            )
        if any(map(is_lazy, part.parameters(recurse=False))):
            raise NetworkError(f"{titled(path, type(part))}: has no weights yet; run the module on a batch first")
        if part._forward_hooks or part._forward_pre_hooks or is_parametrized(part):
            raise NetworkError(f"{titled(path, type(part))}: has hooks or parametrizations; remove them first")
        for name, tensor in [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]:
            if tensor.is_meta:
                raise NetworkError(
                    f"{titled(path, type(part))}: {name} is on the meta device and has no numbers; call "
                    "module.to_empty(device='cpu') and load or initialize its weights first"
                )
    return module


def copied(module: nn.Module) -> nn.Module:
    """A copy in which the wrappers of all submodules are taken off.

    Raises:
        NetworkError: for a module that cannot be copied.
    """
    try:
        module = deepcopy(module)
    except Exception as error:
        raise NetworkError(f"{titled('', type(module))} cannot be copied: {line(error)}") from error
    for part in list(module.modules()):
        for name, child in list(part.named_children()):
            setattr(part, name, _inside(child))
    return module


def _described(given: Any) -> str:
    if isinstance(given, FunctionType | BuiltinFunctionType):
        return f"the function {given.__name__}"
    return f"the class {given.__name__}" if isinstance(given, type) else f"an object of class {type(given).__name__}"


def _inside(module: nn.Module) -> nn.Module:
    for kind, attribute in WRAPPERS.items():
        if isinstance(module, kind):
            return _inside(getattr(module, attribute))
    return module
