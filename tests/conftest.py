"""Test modules import their helpers by name (`tiny`): the folders of helpers are put on the path here."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "trainers"))
