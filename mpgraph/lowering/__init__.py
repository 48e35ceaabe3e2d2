"""The compiler: an agent graph in, one flat torch function out.

In one sentence: every agent's methods are run once on *lazy values*, each a sum of products of tensors on named axes,
and whatever must exist as a tensor is written down as a torch call.

To read it, follow a number from the paper to the code, each file needing only those before it:

1. ``terms``            the data: a factor is a tensor with named axes, a term is a product of factors
2. ``emitter``          writes torch calls, each once; layouts of tensors; the finished function
3. ``sparse``           products over sparse patterns, as torch operators
4. ``gather``           look-ups and sums over a table of who meets whom: convolutions and sparse patterns
5. ``contraction``      a sum of products as calls: what is multiplied first, and into which call each product goes
6. ``dispatch``         the table of torch functions, empty
7. ``value``            lazy values: operators, sums over axes, what a rule sees
8. ``calls``            functions of values: number by number, on whole tensors, for one agent at a time
9. ``torch_functions``  fills the table of 6: linear functions stay lazy, others become calls
10. ``parameters``      lazy values in place of a rule's parameters, for as long as it is traced
11. ``context``         the function being written, as views see it
12. ``shapes``          the size of every tensor in generated code
13. ``segment``         wide functions of one agent, run in slices and computed again in the backward pass
14. ``lazy_view``       ``s``, the argument of every method of a rule, on lazy values
15. ``aggregation``     messages aggregated by a module
16. ``trace``           the schedule: running agents, filling inboxes, what the function returns
17. ``compile``         from a graph to a :class:`~mpgraph.lowering.compile.Compiled` function
18. ``dry_run``         the same without keeping the code: optimizers' channels, and borders between rules
19. ``explain``         the table of what each arrow became, and what it costs
"""

from . import torch_functions as torch_functions  # a value knows torch functions only once the table is filled
