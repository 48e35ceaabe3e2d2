"""Builders of networks."""

from .autoencoder import autoencoder as autoencoder
from .convnet import convnet as convnet
from .layered_sparse import layered_sparse as layered_sparse
from .mlp import mlp as mlp
from .random_graph import random_graph as random_graph
from .recurrent import recurrent as recurrent
from .resnet import resnet as resnet
