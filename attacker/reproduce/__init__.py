"""PRECODE's experiment as one resumable command, and the search for a defence that holds.

Evaluation, not attack: it knows the images. The attacks that it runs see observations only.
"""

from fl_precode.flower.reference_app import make_importable

# What clients compute is computed by their own code: `attacker.reproduce.client`.
make_importable()
