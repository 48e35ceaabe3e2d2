"""Data sets: handwritten digits that ship with scikit-learn, and image sets read from a folder."""

from .datasets import Dataset as Dataset
from .datasets import Targets as Targets
from .datasets import load as load
from .idx import read_idx as read_idx
from .torchvision import download as download
