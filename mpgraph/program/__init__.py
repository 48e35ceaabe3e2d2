"""What a user holds: a network and a rule, compiled to a pure function of state and batch.

Read in this order:

1. ``build.py``: from a network and a rule to an agent graph, step by step; the order matters and is said there.
2. ``program.py``: :class:`Program` with ``init``, ``step``, ``predict``, ``run``, and :func:`compile`, which makes it.
3. ``state.py``: which tensors a state holds: fresh ones, stacks of them, a step's noise.
4. ``batches.py``: from what is passed as ``x`` and ``y`` to the tensors that the generated code takes.
5. ``memory.py``: no tensor of a returned state shares memory with another.
6. ``checks.py``: what is wrong with a batch or a state, in words; looked at only when the quick comparison failed.

The generated code itself is written by :mod:`mpgraph.lowering`. A step passes through ``program.py``, ``batches.py``
and ``state.py`` and then runs it; nothing else happens between two steps.
"""
