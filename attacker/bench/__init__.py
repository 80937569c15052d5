"""How fast the attack engine is on this machine, beside a plain double-backward loop, and that both reach the same."""
