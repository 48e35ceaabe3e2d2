"""The meaning of a program: plain loops over scalar agents."""

from .interpreter import step as step
