"""Experiments: training on data, comparing rules, writing and plotting results."""

from .comparison import compare as compare
from .comparison import shape_of as shape_of
from .contrasts import contrasts as contrasts
from .naming import maker_of as maker_of
from .naming import network_named as network_named
from .naming import rules_named as rules_named
from .results import READOUT_ONLY as READOUT_ONLY
from .results import Run as Run
from .results import read as read
from .results import summary as summary
from .results import versions as versions
from .results import write as write
from .tasks import TASKS as TASKS
from .tasks import Task as Task
from .tasks import task_named as task_named
from .training import accuracy as accuracy
from .training import error as error
from .training import train as train
