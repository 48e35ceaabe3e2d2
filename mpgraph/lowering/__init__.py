"""The compiler: an agent graph in, one flat torch function out.

In one sentence: every agent's methods are run once on *lazy values*, each a sum of products of tensors on named axes,
and whatever must exist as a tensor is written down as a torch call.

To read it, follow a number from the paper to the code, each file needing only those before it:

1. ``terms``            the data: a factor is a tensor with named axes, a term is a product of factors
2. ``ranks``            the processes that share a batch, and what generated code calls to reach them
3. ``emitter``          writes torch calls, each once; layouts of tensors; the finished function
4. ``sparse``           products over sparse patterns, as torch operators
5. ``gather``           look-ups and sums over a table of who meets whom: convolutions and sparse patterns
6. ``contraction``      a sum of products as calls: what is multiplied first, and into which call each product goes
7. ``collectives``      sums over the batch become sums over processes; joining those of one round
8. ``dispatch``         the table of torch functions, empty
9. ``value``            lazy values: operators, sums over axes, what a rule sees
10. ``calls``           functions of values: number by number, on whole tensors, for one agent at a time
11. ``torch_functions`` fills the table of 8: linear functions stay lazy, others become calls
12. ``parameters``      lazy values in place of a rule's parameters, for as long as it is traced
13. ``context``         the function being written, as views see it
14. ``shapes``          the size of every tensor in generated code
15. ``segment``         wide functions of one agent, in slices; a budget says what is kept for the backward pass
16. ``lazy_view``       ``s``, the argument of every method of a rule, on lazy values
17. ``aggregation``     messages aggregated by a module
18. ``trace``           the schedule: running agents, filling inboxes, what the function returns
19. ``quick``           cheaper calls that give the same numbers
20. ``tape``            writing a backward pass: gradients as sums
21. ``transposes``      the derivative of each torch function
22. ``derivative``      generated code with a backward pass of its own
23. ``compile``         from a graph to a :class:`~mpgraph.lowering.compile.Compiled` function
24. ``dry_run``         the same without keeping the code: optimizers' channels, and borders between rules
25. ``explain``         the table of what each arrow became, and what it costs
26. ``replay``          the writes of a step by themselves, for histories of weights
"""

from . import torch_functions as torch_functions  # a value knows torch functions only once the table is filled
