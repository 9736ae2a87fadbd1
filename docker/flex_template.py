"""What the launcher of a Dataflow flex template runs: it passes parameters as flags to a file."""

import sys

from pipeline.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["preprocess", *sys.argv[1:]]))
