"""One learning step of backprop on images, against the same torch modules with autograd and SGD: time and peak memory.

python benchmarks/images.py
"""

import argparse
import subprocess
import sys
from pathlib import Path

import torch
from common import compare, conditions, report
from torch import nn
from torch.nn import functional

import mpgraph as mg
from mpgraph.architectures import convnet, resnet
from mpgraph.protocols import Backprop, FeedbackAlignment


def lenet():
    """LeNet-5 as a torch module."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.Tanh(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.Tanh(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(400, 120), nn.Tanh(), nn.Linear(120, 84), nn.Tanh(), nn.Linear(84, 10),
    )  # fmt: skip


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, inputs, channels, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        self.short = nn.Identity()
        if stride > 1:
            self.short = nn.Sequential(nn.Conv2d(inputs, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x):
        y = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(y)) + self.short(x))


def resnet20():
    """ResNet-20 for 32-pixel images as a torch module."""
    layers = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    channels = 16
    for stage in range(3):
        for block in range(3):
            layers.append(Block(channels, 16 * 2**stage, 2 if stage and not block else 1))
            channels = 16 * 2**stage
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


CASES = {
    "lenet": (lenet, convnet, (64, 1, 28, 28), 60),
    "resnet20": (resnet20, lambda: resnet(20), (16, 3, 32, 32), 12),
}


def stepper(case, contestant):
    """A function that takes one step."""
    module, network, shape, _ = CASES[case]
    torch.manual_seed(0)
    x, y = torch.randn(shape), torch.randint(0, 10, shape[:1])
    if contestant == "autograd":
        model = module()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

        def step():
            optimizer.zero_grad()
            functional.cross_entropy(model(x), y).backward()
            optimizer.step()

        return step
    program = mg.compile(
        network(), {"backprop": Backprop, "feedback alignment": FeedbackAlignment}[contestant](lr=0.01)
    )
    state = [program.init()]

    def step():
        with torch.no_grad():
            state[0], _ = program.step(state[0], x, y)

    return step


def peak(case, contestant):
    """Peak memory of a process that takes three steps, over one that only imports and makes the model, in MiB."""
    command = [sys.executable, __file__, "--peak", case, contestant]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def memory(field):
    """A line of the kernel's account of this process, in MiB."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def main():
    """Print all figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.peak:
        step = stepper(*options.peak)
        Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the peak so far
        before = memory("VmRSS")
        for _ in range(3):
            step()
        print(memory("VmHWM") - before)
        return
    print(conditions())
    for case, (*_, shape, rounds) in CASES.items():
        names = ("autograd", "backprop", "feedback alignment")
        medians = compare({name: stepper(case, name) for name in names}, rounds, calls=1)
        report(f"\n{case}, batch {'x'.join(map(str, shape))}: us a step, ratio to autograd", medians, "autograd")
        peaks = {name: peak(case, name) for name in names[:2]}
        ratio = peaks["backprop"] / max(peaks["autograd"], 1e-9)
        print("  peak memory: " + ", ".join(f"{n} {m:.1f} MiB" for n, m in peaks.items()) + f", ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
