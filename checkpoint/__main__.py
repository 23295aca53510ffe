"""python -m checkpoint"""

from checkpoint.cli.main import main

main()
