"""Families of tasks that ship: few shots and streams of images, sinusoids, toys of two numbers, and augmentations."""

from .augmentation import PermutedLabels as PermutedLabels
from .augmentation import RandomProjection as RandomProjection
from .few_shot import FewShot as FewShot
from .few_shot import OnlineStream as OnlineStream
from .minibatches import Minibatches as Minibatches
from .sinusoids import Sinusoids as Sinusoids
from .toys import Boolean as Boolean
from .toys import Plane as Plane
