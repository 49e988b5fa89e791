"""``python -m oculi``."""

from oculi.cli import main

main()
