"""`python -m imgfs`."""

import sys

from imgfs.cli import main

sys.exit(main())
