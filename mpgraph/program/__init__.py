"""What a user holds: a network and a rule, compiled to a pure function of state and batch.

Read in this order:

1. ``compile.py``: ``mg.compile`` checks its arguments and makes a :class:`Program`.
2. ``program.py``: how a program is built, in steps whose order matters, and ``init``, ``step``, ``predict``, ``run``.
3. ``build.py``: the first of those steps, from a network and a rule to an agent graph.
4. ``state.py``: which tensors a state holds: fresh ones, stacks of them, a step's noise.
5. ``batches.py``: from what is passed as ``x`` and ``y`` to the tensors that the generated code takes.
6. ``memory.py``: which tensors of the generated code share memory, and copies where the state's must not.
7. ``backends.py``: what runs the generated code: torch's calls one by one, inductor, or CUDA graphs.
8. ``history.py``: weights that autograd keeps as what they were written from.
9. ``checks.py``: what is wrong with a batch or a state, in words; looked at only when the quick comparison failed.

The generated code itself is written by :mod:`mpgraph.lowering`. A step passes through ``program.py``, ``batches.py``
and ``state.py`` and then runs it; nothing else happens between two steps.
"""
