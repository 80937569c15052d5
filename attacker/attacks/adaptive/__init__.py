"""Attacks that know of the defence: they recover its noise, restore it, ignore it or match what it did."""
