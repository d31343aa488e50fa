"""Small planners that solve mazes: the recipe, its training, its trained weights, a demo and an evaluation.

Command line: `poh-ext solve --help`. Import the parts: `from poh_ext.solve.pretrained import load`.
"""
