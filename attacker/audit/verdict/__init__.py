"""What a record allows to be said: flags, verdicts, the gate and the comparison. Pure functions of the record."""
