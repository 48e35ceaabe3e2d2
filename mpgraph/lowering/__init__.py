"""The compiler: an agent graph in, one flat torch function out.

In one sentence: every agent's methods are run once on *lazy values*, each a sum of products of tensors on named axes,
and whatever must exist as a tensor is written down as a torch call.

To read it, follow a number from the paper to the code, each file needing only those before it:

1.  ``terms``           the data: a factor is a tensor with named axes, a term is a product of factors
2.  ``ranks``           the processes that share a batch, and what generated code calls to reach them
3.  ``loop``            bodies of loops, what goes from round to round, how much of it is needed
4.  ``emitter``         writes torch calls, each once; layouts of tensors; the finished function
5.  ``sparse``          products over sparse patterns, as torch operators
6.  ``convolution``     the gradient of a convolution's input
7.  ``gather``          look-ups and sums over a table of who meets whom: convolutions and sparse patterns
8.  ``contraction``     a sum of products as calls: what is multiplied first, and into which call each product goes
9.  ``collectives``     sums over the batch become sums over processes; joining those of one round
10. ``dispatch``        the table of torch functions, empty
11. ``value``           lazy values: operators, sums over axes, what a rule sees
12. ``calls``           functions of values: number by number, on whole tensors, for one agent at a time
13. ``torch_functions`` fills the table of 10: linear functions stay lazy, others become calls
14. ``parameters``      lazy values in place of a rule's parameters, for as long as it is traced
15. ``context``         the function being written, as views see it
16. ``shapes``          the size of every tensor in generated code
17. ``segment``         wide functions of one agent, in slices; a budget says what is kept for the backward pass
18. ``lazy_view``       ``s``, the argument of every method of a rule, on lazy values
19. ``aggregation``     messages aggregated by a module
20. ``repetition``      repeated passes as a loop
21. ``ticks``           passes over sequences of any length as loops
22. ``trace``           the schedule: running agents, filling inboxes, what the function returns
23. ``quick``           cheaper calls that give the same numbers
24. ``stream``          many ticks of a step that is one tick, in one call
25. ``tape``            writing a backward pass: gradients as sums
26. ``transposes``      the derivative of each torch function
27. ``derivative``      generated code with a backward pass of its own
28. ``compile``         from a graph to a :class:`~mpgraph.lowering.compile.Compiled` function
29. ``dry_run``         the same without keeping the code: optimizers' channels, and borders between rules
30. ``explain``         the table of what each arrow became, and what it costs
31. ``replay``          the writes of a step by themselves, for histories of weights
"""

from . import torch_functions as torch_functions  # a value knows torch functions only once the table is filled
