"""Learning rules. Each file reads like its paper."""

from .activation_alignment import ActivationAlignment as ActivationAlignment
from .alignment import Alignment as Alignment
from .backprop import Backprop as Backprop
from .blur import BLUR as BLUR
from .direct_feedback_alignment import DirectFeedbackAlignment as DirectFeedbackAlignment
from .feedback_alignment import FeedbackAlignment as FeedbackAlignment
from .hebbian import Hebb as Hebb
from .hebbian import Oja as Oja
from .hebbian import Sanger as Sanger
from .information_alignment import InformationAlignment as InformationAlignment
from .kolen_pollack import KolenPollack as KolenPollack
from .mplp import MPLP as MPLP
from .node_perturbation import NodePerturbation as NodePerturbation
from .noisy_updates import NoisyUpdates as NoisyUpdates
from .plasticity import Plasticity as Plasticity
from .sign_symmetry import SignSymmetry as SignSymmetry
from .symmetric_alignment import SymmetricAlignment as SymmetricAlignment
from .vsml import VSML as VSML
from .weight_mirror import WeightMirror as WeightMirror
