"""`python -m poh_ext`: the program `poh-ext`, see commands/program.py. Without a command it does what `info` does."""

import sys

from poh_ext.commands.program import main

if __name__ == "__main__":
    words = sys.argv[1:]
    raise SystemExit(main(words if words and words[0] != "--brief" else ["info", *words], program="python -m poh_ext"))
