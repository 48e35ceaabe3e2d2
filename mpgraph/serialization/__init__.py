"""States and rules on disk. Loading never runs code; writing replaces a file whole; damage is always an error.

- ``tensors.py``: the file format that both share: named tensors, metadata, and a checksum of everything.
- ``state.py``: what a program keeps, ``state[node][channel]``.
- ``protocol.py``: a rule, its tensors and how to make it; ``PendingTensors`` are those of parts that it makes later.
- ``hub.py``: files on the Hugging Face Hub; ``card.py``: what a repository says of a rule.
- ``atomic.py``: a file is replaced whole or not at all.
"""
