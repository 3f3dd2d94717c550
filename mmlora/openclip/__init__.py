"""A small CLIP made of two published towers, its data, and LoRA on it: what notebook 09 is built on.

The towers speak to each other through two projections that are trained on named drawings. Everything goes through open_clip's
own functions, so the same lines run on its published models. Importing this imports nothing heavy.
"""
