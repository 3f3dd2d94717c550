"""mmlora: small adapters that teach a vision-language model, on a laptop or a free GPU.

Importing this package imports nothing heavy: torch and transformers load with the modules that need them.
"""

__version__ = "0.1.0"
