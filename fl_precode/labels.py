"""Labels from gradients: the published methods, each saying what it assumes, and the best that fits an update."""

from attacker.labels import (
    LABEL_RECOVERY,
    LabelRecovery,
    best_labels,
    bias_corrected_labels,
    count_labels,
    idlg_label,
    label_hypotheses,
    llg_labels,
    llg_white_box_labels,
    recover_labels,
    unique_labels,
    yin_labels,
)

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
