"""Learning rules as messages between neurons and synapses, compiled to torch on any network."""

from . import probes as probes
from .agents.agent import Agent as Agent
from .agents.agent import View as View
from .agents.builtin import BatchNormAgent as BatchNormAgent
from .agents.builtin import LossAgent as LossAgent
from .agents.builtin import OperationAgent as OperationAgent
from .agents.builtin import UnitAgent as UnitAgent
from .agents.channel import Channel as Channel
from .agents.channel import carry as carry
from .agents.channel import common as common
from .agents.channel import fast as fast
from .agents.channel import fed as fed
from .agents.channel import slow as slow
from .agents.each import Each as Each
from .agents.initializers import xavier_uniform as xavier_uniform
from .agents.node import AgentNode as AgentNode
from .agents.optimizers import SGD as SGD
from .agents.optimizers import Adam as Adam
from .agents.optimizers import Optimizer as Optimizer
from .agents.options import Number as Number
from .agents.options import option as option
from .agents.protocol import Protocol as Protocol
from .agents.protocol import cite as cite
from .agents.protocol import learnable as learnable
from .agents.protocol import list_protocols as list_protocols
from .agents.protocol import make_protocol as make_protocol
from .agents.regions import Regions as Regions
from .agents.repeat import repeat as repeat
from .errors import BackendError as BackendError
from .errors import FileError as FileError
from .errors import FlatUnitWarning as FlatUnitWarning
from .errors import GroupError as GroupError
from .errors import InputError as InputError
from .errors import MPGraphError as MPGraphError
from .errors import NetworkError as NetworkError
from .errors import ProtocolError as ProtocolError
from .errors import StateError as StateError
from .network.activations import Activation as Activation
from .network.activations import Function as Function
from .network.activations import Quantizer as Quantizer
from .network.activations import Softplus as Softplus
from .network.connections import Connection as Connection
from .network.connections import Conv2d as Conv2d
from .network.connections import OneToOne as OneToOne
from .network.connections import Sparse as Sparse
from .network.losses import Loss as Loss
from .network.network import Network as Network
from .network.normalization import BatchNorm as BatchNorm
from .network.normalization import LayerNorm as LayerNorm
from .network.operations import AvgPool as AvgPool
from .network.operations import MaxPool as MaxPool
from .network.operations import Operation as Operation
from .network.operations import Reshape as Reshape
from .program.backends import Backend as Backend
from .program.compile import compile as compile
from .program.program import Output as Output
from .program.program import Program as Program
from .program.state import stack as stack
from .serialization.protocol import load_protocol as load_protocol

Kind = Activation  # its name before 0.2

__version__ = "0.1.0"
