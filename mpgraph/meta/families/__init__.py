"""Families of tasks that ship: few shots and streams of images, sinusoids, toys, augmentations, mixtures."""

from .augmentation import PermutedLabels as PermutedLabels
from .augmentation import RandomFilter as RandomFilter
from .augmentation import RandomProjection as RandomProjection
from .few_shot import FewShot as FewShot
from .few_shot import OnlineStream as OnlineStream
from .minibatches import Minibatches as Minibatches
from .mixture import Mixture as Mixture
from .sinusoids import Sinusoids as Sinusoids
from .toys import Boolean as Boolean
from .toys import Plane as Plane
