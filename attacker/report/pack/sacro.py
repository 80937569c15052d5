"""``attack_results.json`` and ``target.yaml`` as the output checkers of SACRO-ML read them.

An experiment is a federation, its instances are attacks on it. Their rule asks of how many instances the AUC is above
1/2 by more than chance: more than 10 % count against release, anything else counts for it. The AUC here is that of
telling what an attack made of an update from the best guess without it, by the similarity to the true image. Where
images had candidates, each attack has another instance for each measure: the AUC of telling the true image from them.

Weak evidence and too few updates must not count for release. So an experiment is logged only where the verdict is a
leak, with the attacks whose AUC is above chance, or where the defence held, with all of them; else ``not_judged`` says
why it is not. The rule carries significant instances of one experiment over to those that follow, so what held comes
first.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import comb

from attacker.attacks.registry import attack_title
from attacker.audit.record.counting import best_guess, comparable
from attacker.audit.record.naming import LinedUp, identified_in
from attacker.audit.record.schema import AttackSummary, AuditRecord, FederationSummary, ImageResult
from attacker.audit.record.trials import update_of
from attacker.audit.verdict.verdict import title_of
from attacker.report.pack.answers import Audited, audited
from attacker.report.verdict import Finding

RESULTS_NAME: Final = "attack_results.json"
TARGET_NAME: Final = "target.yaml"
FORMAT: Final = "2.0"
"""Version of SACRO-ML whose files these are like."""

_LEVEL: Final = 0.05
"""Probability below which SACRO-ML takes an AUC to be above 1/2."""


def attack_results(record: AuditRecord) -> str:
    """Every attack on every federation that is no control, as JSON."""
    sections: dict[str, Any] = {"log_id": _identity(record.created, record.title), "created_by": _maker(record)}
    for one in sorted(audited(record), key=lambda one: one.verdict.finding.leak):
        section = _section(one)
        sections[f"{section['metadata']['attack_name']}_{section['log_id']}"] = section
    return json.dumps(sections, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _maker(record: AuditRecord) -> str:
    return f"fl-precode {record.versions.get('fl-precode', '')}".strip()


def _identity(*parts: str) -> str:
    """The same for the same parts, in every pack."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, "fl-precode:" + json.dumps(parts)))


def _section(one: Audited) -> dict[str, Any]:
    record, federation = one.record, one.federation
    union = one.view.union
    section: dict[str, Any] = {
        "log_id": _identity(record.created, federation.tape, federation.id),
        "log_time": _moment(record.created),
        "metadata": {
            "sacroml_version": f"none; the format of {FORMAT}, written by {_maker(record)}",
            "attack_name": f"Reconstruction from updates: {title_of(federation)}",
            "attack_params": {
                "attacks": [summary.attack for summary in one.view.summaries],
                "federation": federation.id,
                "tape": federation.tape,
            },
            "global_metrics": {
                "verdict": one.verdict.finding.value,
                "images": union.images,
                "images_reconstructed": union.back if one.view.scored else None,
                "share_interval_95": list(union.interval) if one.view.scored else None,
                **_named(one),
            },
        },
    }
    judged = [found for summary in one.view.summaries if (found := _instance(one, summary)) is not None]
    judged += _line_ups(one)
    if one.verdict.finding is Finding.HELD:
        shown = judged
    elif one.verdict.finding.leak or one.verdict.finding is Finding.LEAKS_IN_PART:
        shown = [found for found in judged if found["P_HIGHER_AUC"] < _LEVEL]
    else:
        shown = []
    if shown:
        logged = {f"instance_{number}": found for number, found in enumerate(shown)}
        section["attack_experiment_logger"] = {"attack_instance_logger": logged}
    else:
        section["not_judged"] = (
            f"{one.verdict.sentence} This is no evidence for release. The evidence is weak, or fewer than 4 updates "
            f"could be compared, or no AUC is above chance by a test at {_LEVEL:g}."
        )
    return section


def _named(one: Audited) -> dict[str, Any]:
    """How many images are identified; nothing where no image had candidates."""
    found = identified_in(one.view)
    if found is None:
        return {}
    return {
        "images_identified": found.count,
        "images_with_candidates": found.images,
        "candidates": found.candidates,
        "identified_share_interval_95": list(found.interval),
        "identified_chance": found.chance,
    }


def _line_ups(one: Audited) -> list[dict[str, Any]]:
    """How well what each attack made tells the true images from other candidates, by each measure.

    The AUC is the probability that the true image is nearer to what was made of it than another candidate is. Its
    p-value is that of as many first images by chance, which allows for images of one update and for all comparisons.
    """
    found = identified_in(one.view)
    return [] if found is None else [_line_up(one, aligned) for aligned in found.lined_up]


def _line_up(one: Audited, aligned: LinedUp) -> dict[str, Any]:
    summary, ranks = aligned.summary, aligned.ranks
    rows = [row for row in one.view.rows(summary.attack) if (row.candidates or 1) > 1]
    by_pixels = ranks.measure == "pixels"
    # Share of the other candidates that are nearer; an image without a picture is told from none.
    ahead = np.array(
        [
            0.5 if rank is None else (rank - 1) / ((row.candidates or 1) - 1)
            for row in rows
            for rank in [row.rank if by_pixels else row.feature_rank]
        ]
    )
    others = float(np.sum([(row.candidates or 1) - 1 for row in rows]))
    total, first = others + len(rows), ranks.first
    at = [0.0, *sorted(set(ahead.tolist())), 1.0]
    high, low = float(np.sum(ahead <= 0.1)) / (total / 10), float(np.sum(ahead >= 0.9)) / (total / 10)
    return {
        "attack_name": f"{attack_title(summary.attack)}, told from candidates by {ranks.measure}",
        "attack": summary.attack,
        "images": len(rows),
        "images_first": first,
        "images_identified": ranks.identified,
        "candidates": ranks.candidates,
        "AUC": float(1 - np.mean(ahead)),
        "P_HIGHER_AUC": aligned.chance,
        "ACC": 1 - 2 * (len(rows) - first) / total,
        "FMAX01": high,
        "FMIN01": low,
        "FDIF01": high - low,
        "n_pos_test_examples": len(rows),
        "n_neg_test_examples": int(others),
        "fpr": [0.0, *at],
        "tpr": [0.0, *(float(np.mean(ahead <= share)) for share in at)],
    }


def _moment(created: str) -> str:
    """The time of the audit as SACRO-ML writes times; as it is where it cannot be read."""
    try:
        return datetime.fromisoformat(created).strftime("%d/%m/%Y %H:%M:%S")
    except ValueError:
        return created


def _pairs(rows: Sequence[ImageResult]) -> NDArray[np.float64]:
    """For each update the mean similarity of what the attack made, and of the best guess: (updates, 2).

    Images of one update stand or fall together, so that each update is one observation.
    """
    by_update: dict[tuple[int, str], list[tuple[float, float]]] = {}
    for row in rows:
        # A diverged attack has made nothing that is like the image.
        by_update.setdefault(update_of(row), []).append((row.ssim or 0.0, best_guess(row) or 0.0))
    return np.array([np.mean(pairs, axis=0) for pairs in by_update.values()]).reshape(-1, 2)


def _can_tell(updates: int) -> bool:
    """Whether the exact test could come below the level at all, with equal numbers of updates and guesses."""
    return updates > 0 and 1 / comb(2 * updates, updates, exact=True) < _LEVEL


def _instance(one: Audited, summary: AttackSummary) -> dict[str, Any] | None:
    """What one attack came to; None where nothing can be compared, or in too few updates for a test."""
    pairs = _pairs([row for row in one.view.rows(summary.attack) if comparable(row)])
    if not _can_tell(len(pairs)):
        return None
    from scipy.stats import mannwhitneyu

    made, guessed = pairs[:, 0], pairs[:, 1]
    test = mannwhitneyu(made, guessed, alternative="greater")
    scores, member = np.concatenate([made, guessed]), np.repeat([1.0, 0.0], len(pairs))
    order = np.argsort(-scores, kind="stable")
    tenth = max(1, len(scores) // 10)
    high, low = member[order[:tenth]].mean(), member[order[-tenth:]].mean()
    false_positive, true_positive = _curve(made, guessed)
    return {
        "attack_name": attack_title(summary.attack),
        "attack": summary.attack,
        "images": summary.images,
        "images_reconstructed": summary.successes,
        "mean_ssim": summary.mean_ssim,
        "AUC": float(test.statistic / len(pairs) ** 2),
        "P_HIGHER_AUC": float(test.pvalue),
        "ACC": float(np.mean((scores >= one.record.success_threshold) == (member == 1))),
        "FMAX01": float(high),
        "FMIN01": float(low),
        "FDIF01": float(high - low),
        "n_pos_test_examples": len(pairs),
        "n_neg_test_examples": len(pairs),
        "fpr": false_positive,
        "tpr": true_positive,
    }


def _curve(made: NDArray[np.float64], guessed: NDArray[np.float64]) -> tuple[list[float], list[float]]:
    """The ROC curve, from (0, 0) to (1, 1)."""
    at = [np.inf, *sorted({*made.tolist(), *guessed.tolist()}, reverse=True)]
    return [float(np.mean(guessed >= level)) for level in at], [float(np.mean(made >= level)) for level in at]


def target_yaml(record: AuditRecord) -> str:
    """The model that the updates are of; several federations of several models are named together.

    No model and no data are saved with it, so that SACRO-ML's own attacks cannot run on it.
    """
    federations = [one.federation for one in audited(record)]
    first = federations[0] if len(federations) == 1 else None
    datasets = dict.fromkeys(federation.dataset or "not known" for federation in federations)
    content: dict[str, Any] = {
        "dataset_name": ", ".join(datasets),
        "dataset_module_path": "",
        "features": {},
        "safemodel": [],
        "model_type": "",
        "model_name": ", ".join(dict.fromkeys(federation.model for federation in federations)),
        "model_params": _parameters(first) if first is not None else {},
        "audited_by": _maker(record),
        "audited_on": record.created,
        "federations": [title_of(federation) for federation in federations],
    }
    if first is not None and first.batch_size is not None:
        content["batch_size"] = first.batch_size
    # Each value is JSON, which YAML takes as it is: no YAML library is needed.
    return "".join(f"{name}: {json.dumps(value, ensure_ascii=False)}\n" for name, value in content.items())


def _parameters(federation: FederationSummary) -> dict[str, Any]:
    return {
        "defence": federation.defence,
        "protocol": federation.protocol,
        "parameters": federation.parameters,
        "classes": federation.classes,
        "shape": list(federation.shape),
        # As text: YAML 1.1 reads 1e-05 as a word.
        "learning_rate": None if federation.learning_rate is None else f"{federation.learning_rate:g}",
    }
