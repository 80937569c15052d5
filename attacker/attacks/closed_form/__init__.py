"""Attacks by equations, and searches among what the equations leave open."""
