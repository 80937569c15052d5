"""PRECODE's experiment as one resumable command, and the search for a defence that holds.

Evaluation, not attack: it knows the images. The attacks that it runs see observations only.
"""
