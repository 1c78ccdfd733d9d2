"""``python -m astro_narrowband``."""

import sys

from astro_narrowband.cli import main

sys.exit(main())
