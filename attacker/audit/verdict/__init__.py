"""Conclusions from a record: flags, verdicts, the gate and the comparison. Pure functions of the record."""
