"""``python -m mpgraph``."""

import sys

from .cli import main

sys.exit(main())
