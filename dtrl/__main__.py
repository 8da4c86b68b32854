"""`python -m dtrl` is `dtrl`."""

import sys

from dtrl.cli import main

sys.exit(main())
