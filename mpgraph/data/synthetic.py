"""Tasks without files, each drawn from a seed: two of classes, two of numbers.

``xor``           points of a square; the class is the sign of the product of their coordinates
``delayed_cue``   sequences: which of two cues came first must be known after ticks of noise
``teacher``       regression on the outputs of a random network (teacher and student)
``mackey_glass``  regression on the future of the chaotic series of Mackey and Glass (Science, 1977), with the delay,
                  inputs and horizon of Lapedes and Farber (1987) and Jang (1993): x(t - 18), x(t - 12), x(t - 6) and
                  x(t) predict x(t + 6)
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Generator, Tensor

EXAMPLES = (1000, 500)  # to train on, to test on
CUE_TICKS = 10
TEACHER = (16, 32, 4)  # units of the teacher: inputs, tanh, outputs
LAGS, HORIZON = (18, 12, 6, 0), 6
Parts = tuple[Tensor, Tensor, Tensor, Tensor]  # train_x, train_y, test_x, test_y


def xor(seed: int) -> Parts:
    """Points ``(n, 2)`` of the square from -1 to 1, with classes 0 and 1."""
    x = 2.0 * torch.rand(sum(EXAMPLES), 2, generator=_generator(seed), dtype=torch.float64) - 1.0
    return _halves(x, (x.prod(1) > 0).long())


def delayed_cue(seed: int) -> Parts:
    """Sequences ``(n, ticks, 3)``: a cue on one of two channels at the first tick, noise on the third until the last.

    Noise is standard normal. The class is the channel of the cue.
    """
    generator = _generator(seed)
    n = sum(EXAMPLES)
    y = torch.randint(2, (n,), generator=generator)
    x = torch.zeros(n, CUE_TICKS, 3, dtype=torch.float64)
    x[torch.arange(n), 0, y] = 1.0
    x[:, 1:, 2] = torch.randn(n, CUE_TICKS - 1, generator=generator, dtype=torch.float64)
    return _halves(x, y)


def teacher(seed: int) -> Parts:
    """Standard normal inputs ``(n, 16)`` and what a random network 16-32-4 with tanh units makes of them ``(n, 4)``.

    Its weights are normal with the variance 4 / fan-in below the tanh and 1 / fan-in above it, its biases zero.
    """
    generator = _generator(seed)
    inputs, hidden, outputs = TEACHER
    below = torch.randn(hidden, inputs, generator=generator, dtype=torch.float64) * (4.0 / inputs) ** 0.5
    above = torch.randn(outputs, hidden, generator=generator, dtype=torch.float64) / hidden**0.5
    x = torch.randn(sum(EXAMPLES), inputs, generator=generator, dtype=torch.float64)
    return _unit_variance(*_halves(x, (x @ below.T).tanh() @ above.T))


def mackey_glass(seed: int) -> Parts:
    """Four values of the past ``(n, 4)`` and one of the future ``(n, 1)``; tests lie after all that is trained on."""
    start = 0.9 + 0.6 * float(torch.rand(1, generator=_generator(seed), dtype=torch.float64))
    first = 118  # as Jang, who leaves out what the start still shapes
    series = torch.from_numpy(series_of(start, first + sum(EXAMPLES) + HORIZON))
    times = torch.arange(first, first + sum(EXAMPLES))
    x = torch.stack([series[times - lag] for lag in LAGS], 1)
    return _unit_variance(*_halves(x, series[times + HORIZON].unsqueeze(1)))


def series_of(start: float, length: int, delay: int = 17, substeps: int = 10) -> np.ndarray:
    """``dx/dt = 0.2 x(t - delay) / (1 + x(t - delay)^10) - 0.1 x(t)`` at ``t = 0, 1, ...``.

    By Runge-Kutta of order 4, with what was a delay ago interpolated linearly between its steps.

    Args:
        start: ``x(0)``; before, x is 0.
        length: values to return.
        delay: in units of time.
        substeps: steps of integration in one unit of time.
    """
    step = 1.0 / substeps
    x = np.zeros(delay * substeps + length * substeps + 1)
    now = delay * substeps
    x[now] = start

    def drive(past: float) -> float:
        return 0.2 * past / (1.0 + past**10)

    for i in range(now, now + length * substeps):
        past = x[i - now]
        later = x[i - now + 1] if i + 1 != 2 * now else 0.0  # at 0 itself x jumps: the step ends before that
        middle = drive(0.5 * (past + later))
        k1 = drive(past) - 0.1 * x[i]
        k2 = middle - 0.1 * (x[i] + 0.5 * step * k1)
        k3 = middle - 0.1 * (x[i] + 0.5 * step * k2)
        k4 = drive(later) - 0.1 * (x[i] + step * k3)
        x[i + 1] = x[i] + step * (k1 + 2.0 * k2 + 2.0 * k3 + k4) / 6.0
    return x[now::substeps][:length]


def _generator(seed: int) -> Generator:
    return Generator(device="cpu").manual_seed(seed)


def _halves(x: Tensor, y: Tensor) -> Parts:
    n = EXAMPLES[0]
    return x[:n], y[:n], x[n:], y[n:]


def _unit_variance(train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor) -> Parts:
    """Targets shifted and scaled by mean and deviation of each output over the training examples."""
    mean, std = train_y.mean(0), train_y.std(0)
    return train_x, (train_y - mean) / std, test_x, (test_y - mean) / std
