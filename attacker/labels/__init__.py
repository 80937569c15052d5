"""Label recovery from gradients, one function for each published method, each saying what it assumes."""

from attacker.labels.best import best_labels
from attacker.labels.bias_corrected import bias_corrected_labels
from attacker.labels.counts import count_labels
from attacker.labels.hypotheses import label_hypotheses
from attacker.labels.idlg import idlg_label
from attacker.labels.llg import llg_labels
from attacker.labels.llg_white_box import llg_white_box_labels
from attacker.labels.registry import LABEL_RECOVERY, LabelRecovery, recover_labels
from attacker.labels.unique import unique_labels
from attacker.labels.yin import yin_labels

__all__ = [
    "LABEL_RECOVERY",
    "LabelRecovery",
    "best_labels",
    "bias_corrected_labels",
    "count_labels",
    "idlg_label",
    "label_hypotheses",
    "llg_labels",
    "llg_white_box_labels",
    "recover_labels",
    "unique_labels",
    "yin_labels",
]
