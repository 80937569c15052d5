"""Label recovery from gradients, one function for each published method, each saying what it assumes."""

from attacker.labels.idlg import idlg_label

__all__ = ["idlg_label"]
