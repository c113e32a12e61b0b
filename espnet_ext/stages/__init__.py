"""The stages of a recipe: each takes an ``Experiment`` and leaves whole files or none."""
