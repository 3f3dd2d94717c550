"""The parts of `benchmarks/faults.py`: what is broken, the two sides that have to stand it, and what is made of the outcome."""
