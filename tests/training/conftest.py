"""Some tests start their own file as a program, which imports what stands beside it by name, and so do they."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
