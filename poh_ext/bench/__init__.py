"""Kernel timings against what PyTorch and other packages offer: `python -m poh_ext.bench`."""
