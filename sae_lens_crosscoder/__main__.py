"""`python -m sae_lens_crosscoder` is the command `sae-lens-crosscoder`."""

import sys

from sae_lens_crosscoder.cli import main

if __name__ == "__main__":
    sys.exit(main())
