"""``python -m astro_narrowband``."""

import sys

try:
    from astro_narrowband.cli import main
except KeyboardInterrupt:  # while libraries load
    print("astro-narrowband: interrupted", file=sys.stderr)
    sys.exit(130)

sys.exit(main())
