"""The command line by `python -m deepfeat.cli`."""

import sys

from deepfeat.cli import main

sys.exit(main())
