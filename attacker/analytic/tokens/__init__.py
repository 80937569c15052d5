"""From the tokens of a transformer's first block, found by `attacker.analytic.spans`, to the images they come from."""
