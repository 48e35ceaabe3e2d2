"""What a test expects of bad input: one error of the family, whose text holds every word."""

import re

import pytest


def refuses(error, *words):
    """The error is of the family and its text holds every word."""
    pattern = "".join(f"(?=.*{re.escape(word)})" for word in words)
    return pytest.raises(error, match=f"(?s){pattern}")
