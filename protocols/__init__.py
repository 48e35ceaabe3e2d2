"""Learning rules. Each file reads like its paper."""

from .alignment import ActivationAlignment as ActivationAlignment
from .alignment import Alignment as Alignment
from .alignment import InformationAlignment as InformationAlignment
from .alignment import KolenPollack as KolenPollack
from .alignment import NoisyUpdates as NoisyUpdates
from .alignment import SymmetricAlignment as SymmetricAlignment
from .alignment import WeightMirror as WeightMirror
from .backprop import Backprop as Backprop
from .blur import BLUR as BLUR
from .difference_target_propagation import DifferenceTargetPropagation as DifferenceTargetPropagation
from .direct_feedback_alignment import DirectFeedbackAlignment as DirectFeedbackAlignment
from .direct_random_target_projection import DirectRandomTargetProjection as DirectRandomTargetProjection
from .equilibrium_propagation import EquilibriumPropagation as EquilibriumPropagation
from .feedback_alignment import FeedbackAlignment as FeedbackAlignment
from .forward_forward import ForwardForward as ForwardForward
from .hebbian import Hebb as Hebb
from .hebbian import Oja as Oja
from .hebbian import Sanger as Sanger
from .local_losses import LocalLosses as LocalLosses
from .mplp import MPLP as MPLP
from .node_perturbation import NodePerturbation as NodePerturbation
from .pepita import PEPITA as PEPITA
from .plasticity import Plasticity as Plasticity
from .predictive_coding import PredictiveCoding as PredictiveCoding
from .sign_symmetry import SignSymmetry as SignSymmetry
from .vsml import VSML as VSML
