"""Learning rules as messages between neurons and synapses, compiled to torch on any network."""

from .agent import Agent as Agent
from .agent import Channel as Channel
from .agent import View as View
from .agent import carry as carry
from .agent import common as common
from .agent import fast as fast
from .agent import slow as slow
from .connection import Connection as Connection
from .connection import Conv2d as Conv2d
from .connection import OneToOne as OneToOne
from .connection import Sparse as Sparse
from .defaults import LossAgent as LossAgent
from .defaults import UnitAgent as UnitAgent
from .each import Each as Each
from .errors import FileError as FileError
from .errors import FlatUnitWarning as FlatUnitWarning
from .errors import InputError as InputError
from .errors import MPGraphError as MPGraphError
from .errors import NetworkError as NetworkError
from .errors import ProtocolError as ProtocolError
from .errors import StateError as StateError
from .initializers import xavier_uniform as xavier_uniform
from .kinds import Function as Function
from .kinds import Kind as Kind
from .kinds import Quantizer as Quantizer
from .kinds import Softplus as Softplus
from .losses import Loss as Loss
from .network import Network as Network
from .normalization import BatchNorm as BatchNorm
from .normalization import LayerNorm as LayerNorm
from .operations import AvgPool as AvgPool
from .operations import MaxPool as MaxPool
from .operations import Operation as Operation
from .operations import Reshape as Reshape
from .optimizer import SGD as SGD
from .optimizer import Optimizer as Optimizer
from .program import Output as Output
from .program import Program as Program
from .program import compile as compile
from .protocol import Protocol as Protocol
from .protocol import cite as cite
from .protocol import learnable as learnable
from .protocol import list_protocols as list_protocols
from .protocol import make_protocol as make_protocol

__version__ = "0.1.0"
