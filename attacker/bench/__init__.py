"""Speed of the attack engine on this machine, beside a plain double-backward loop of equal results."""
