"""`python -m genray` is the `genray` command."""

import sys

from genray.cli import main

sys.exit(main())
