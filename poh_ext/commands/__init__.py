"""The command line `poh-ext`, also `python -m poh_ext`: program.py chooses a command, each of which has its file here.

source.py declares the options that say which maze; bench, benchmark and scaling are those of poh_ext.bench and
poh_ext.training.
"""
