"""Predictive coding: values settle between what is predicted of them and the errors that they cause."""

from .rule import PredictiveCoding as PredictiveCoding
