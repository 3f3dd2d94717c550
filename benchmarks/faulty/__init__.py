"""The parts of `benchmarks/faults.py`: the faults, the two sides that they are injected into, and how outcomes are judged."""
