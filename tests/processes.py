"""Starting several processes that form a group of ``torch.distributed``, as ``torchrun`` does."""

import os
import socket
import traceback
import warnings


def together(function, processes, *arguments):
    """Run ``function(*arguments)`` in processes with the environment that ``torchrun`` gives them; their exit codes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(processes):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # threads that torch has are not used in the child
            child = os.fork()
        if child == 0:
            try:
                os.environ.update(
                    RANK=str(rank), WORLD_SIZE=str(processes), MASTER_ADDR="localhost", MASTER_PORT=str(port)
                )
                warnings.simplefilter("ignore")
                function(*arguments)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
