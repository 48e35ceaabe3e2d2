"""Builders of networks."""

from .mlp import mlp as mlp
from .autoencoder import autoencoder as autoencoder
from .convnet import convnet as convnet
from .recurrent import recurrent as recurrent
from .resnet import resnet as resnet
