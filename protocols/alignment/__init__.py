"""Feedback weights that learn: primitives of alignment, and the rules that are made of them."""

from .activation_alignment import ActivationAlignment as ActivationAlignment
from .information_alignment import InformationAlignment as InformationAlignment
from .kolen_pollack import KolenPollack as KolenPollack
from .noisy_updates import NoisyUpdates as NoisyUpdates
from .rule import Alignment as Alignment
from .symmetric_alignment import SymmetricAlignment as SymmetricAlignment
from .weight_mirror import WeightMirror as WeightMirror
