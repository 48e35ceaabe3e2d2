"""Builders of networks."""

from .mlp import mlp as mlp
from .autoencoder import autoencoder as autoencoder
from .convnet import convnet as convnet
from .recurrent import recurrent as recurrent
from .resnet import resnet as resnet
from .layered_sparse import layered_sparse as layered_sparse
from .random_graph import random_graph as random_graph
