"""Programs on a CUDA device that is not there: torch checks shapes and devices of every call, and computes nothing."""

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

CUDA = torch.device("cuda:0")


class FakeCuda(TorchFunctionMode):
    """Inside, moving a tensor to the GPU makes a fake one there, for which torch would need CUDA.

    Attributes:
        mode: inside it, every call is checked: a tensor that is not fake, or on another device, is an error.
    """

    def __init__(self):
        super().__init__()
        self.mode = FakeTensorMode()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.Tensor.to:
            given = [*args[1:], kwargs.get("device")]
            if any(isinstance(a, (str, torch.device)) and torch.device(a).type == "cuda" for a in given):
                dtypes = [a for a in (*args[1:], kwargs.get("dtype")) if isinstance(a, torch.dtype)]
                return self.moved(args[0], *dtypes)
        if func in (torch.log_softmax, torch.nn.functional.log_softmax):  # torch makes its argument contiguous itself
            return func(self.moved(args[0].new_empty(args[0].shape)), *args[1:], **kwargs)
        return func(*args, **kwargs)

    def moved(self, tensor, dtype=None):
        """A fake tensor on the GPU like this one."""
        if isinstance(tensor, FakeTensor) and tensor.device == CUDA and dtype in (None, tensor.dtype):
            return tensor
        with torch._C.DisableTorchFunction(), self.mode:
            shape, strides = tuple(tensor.shape), tensor.stride()
            return torch.empty_strided(shape, strides, dtype=dtype or tensor.dtype, device=CUDA)

    def everywhere(self, nested):
        """Tensors in nested dictionaries, moved."""
        return pytree.tree_map_only(torch.Tensor, self.moved, nested)

    def program(self, program):
        """Everything that a program holds, moved: what it would hold if it was compiled there."""
        program.device = program._layout.device = program._batches.device = CUDA
        program._batches._tables = self.everywhere(program._batches._tables)
        program._fresh = self.everywhere(program._fresh)
        modules = [m for compiled in program._compiled.values() for m in compiled.module.modules()]
        for module in {*modules, *program.modules()}:
            for store in (module._parameters, module._buffers):
                store.update({name: self.moved(tensor) for name, tensor in store.items() if tensor is not None})
        return program
