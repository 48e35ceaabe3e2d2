"""What is measured: each file holds one family, the program and the same computation as an expert writes it."""

from collections.abc import Sequence

from benchmarks.harness import Workload

from . import blur, images, mplp, plasticity, sparse, steps, vsml

ALL: Sequence[Workload] = [
    workload for family in (steps, images, sparse, plasticity, mplp, vsml, blur) for workload in family.WORKLOADS
]
