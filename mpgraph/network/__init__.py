"""What a person defines: units, connections, losses. No learning rule is known here."""

from .network import Network as Network
