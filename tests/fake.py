"""Programs on a CUDA device that is not there: torch checks shapes and devices of every call, and computes nothing."""

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

CUDA = torch.device("cuda:0")


class FakeCuda(TorchFunctionMode):
    """Inside, tensors are fake, and moving one to the GPU makes a fake one there, for which torch would need CUDA."""

    def __init__(self):
        super().__init__()
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)

    def __enter__(self):
        self.mode.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        return self.mode.__exit__(*error)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.Tensor.to:
            device = kwargs.get("device", next((a for a in args[1:] if isinstance(a, (str, torch.device))), None))
            if device is not None and torch.device(device).type == "cuda":
                return self.moved(args[0].to(kwargs.get("dtype") or args[0].dtype))
        return func(*args, **kwargs)

    def moved(self, tensor):
        """A fake tensor on the GPU like this one."""
        if isinstance(tensor, FakeTensor) and tensor.device == CUDA:
            return tensor
        with torch._C.DisableTorchFunction(), self.mode:
            shape, strides = tuple(tensor.shape), tensor.stride()
            return torch.empty_strided(shape, strides, dtype=tensor.dtype, device=CUDA)

    def everywhere(self, nested):
        """Tensors in nested dictionaries, moved."""
        return pytree.tree_map_only(torch.Tensor, self.moved, nested)

    def program(self, program):
        """Everything that a program holds, moved; code that it writes later is moved when it is asked for again."""
        program.device = program._layout.device = program._batches.device = CUDA
        program._batches._tables = self.everywhere(program._batches._tables)
        program._fresh = self.everywhere(program._fresh)
        modules = [m for compiled in program._compiled.values() for m in compiled.module.modules()]
        for module in {*modules, *program.modules()}:
            for store in (module._parameters, module._buffers):
                store.update({name: self.moved(tensor) for name, tensor in store.items() if tensor is not None})
        return program
