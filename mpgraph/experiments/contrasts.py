"""Planned contrasts: each rule against one reference, paired by seed.

Two rules on one seed share the split, the initial weights and the order of examples, so their difference is free of
what these add. Effect size: Cohen's d for paired samples, the mean difference in units of its standard deviation. Pairs
that would be needed: G.-C. Guenther's approximation for the two-sided paired t-test (Am. Stat. 35, 1981),
n = (z_a + z_b)^2 / d^2 + z_a^2 / 2.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from .results import READOUT_ONLY, Run, grouped

LEVEL, POWER = 0.05, 0.8  # of the test that the number of pairs is planned for


def contrasts(runs: Sequence[Run], reference: str) -> list[dict[str, Any]]:
    """A row for each rule other than the reference, on each task, network and output, over the seeds that both have.

    Args:
        runs: of a comparison. Those that diverged count with the score that they had.
        reference: the rule that the others are held against.

    Returns:
        Rows with ``task``, ``network``, ``output`` (``""`` where there is one), ``protocol``, ``against``, ``pairs``,
        ``difference`` (mean; positive where the rule is better: more accuracy or less error), ``standard_error``,
        ``effect_size`` and ``needed``, the pairs that a two-sided test at 5 % needs to find this difference with a
        power of 80 %. The last three are ``None`` where they cannot be known: for one pair, or if all differences are
        the same.
    """
    rows = []
    for (task, network, output), group in grouped(runs).items():
        scores: dict[str, dict[int, float]] = {}
        for run in group:
            scores.setdefault(run.protocol, {})[run.seed] = run.gain
        others = scores.get(reference, {})
        where = {"task": task, "network": network, "output": output}
        for name, own in scores.items():
            pairs = [own[seed] - others[seed] for seed in own if seed in others]
            if name not in (reference, READOUT_ONLY) and pairs:
                rows.append({**where, "protocol": name, "against": reference, **paired(pairs)})
    return rows


def paired(differences: Sequence[float]) -> dict[str, Any]:
    """Mean, standard error, effect size and needed pairs of differences."""
    mean = statistics.fmean(differences)
    row: dict[str, Any] = {"pairs": len(differences), "difference": mean}
    row |= dict.fromkeys(("standard_error", "effect_size", "needed"))
    if len(differences) < 2 or not all(map(math.isfinite, differences)):
        return row
    deviation = statistics.stdev(differences)
    row["standard_error"] = deviation / math.sqrt(len(differences))
    if deviation:
        row["effect_size"] = mean / deviation
        row["needed"] = needed(mean / deviation) if mean else None
    return row


def needed(effect: float) -> int:
    """Pairs that find an effect of this size (in standard deviations, not 0)."""
    normal = statistics.NormalDist()
    z = normal.inv_cdf(1.0 - LEVEL / 2.0)
    return max(2, math.ceil(((z + normal.inv_cdf(POWER)) / effect) ** 2 + z**2 / 2.0))
