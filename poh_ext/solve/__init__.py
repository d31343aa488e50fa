"""Small planners that solve mazes: the recipe, its training, its trained weights, a demo and an evaluation.

Command line: `python -m poh_ext solve --help`. Import the parts: `from poh_ext.solve.pretrained import load`.
"""
