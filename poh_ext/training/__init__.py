"""Training and evaluation of planners under one protocol, and the benchmarks made of them."""
