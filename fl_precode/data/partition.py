"""Partition of the samples: each goes to exactly one client, and no client is left empty."""

from __future__ import annotations

import numpy as np
from torch import Tensor

SCHEMES = ("iid", "dirichlet", "pathological")
DIRICHLET_TRIES = 20


def partition(
    labels: Tensor | np.ndarray,
    *,
    num_clients: int,
    scheme: str,
    seed: int,
    dirichlet_alpha: float = 0.5,
    classes_per_client: int = 1,
) -> list[np.ndarray]:
    """Deal the samples out.

    Args:
        labels: (n,) class of each sample.
        num_clients: At least 1, at most n.
        scheme: ``iid``; ``dirichlet``: each class is dealt out in shares drawn from Dirichlet(alpha) (Hsu et al. 2019);
            ``pathological``: each client holds ``classes_per_client`` classes (McMahan et al. 2017, section 3).
        seed: Seed of the draw; equal seeds give equal partitions.
        dirichlet_alpha: Concentration; small is skewed.
        classes_per_client: At least 1, at most the number of classes.

    Returns:
        For each client a sorted array of indices. Disjoint; together they are all samples.

    Raises:
        ValueError: If a client would stay empty or the scheme cannot be met; the text says what to change.
    """
    values = np.asarray(labels)
    if values.ndim != 1:
        raise ValueError(f"expected one label for each sample, shape (n,), got {values.shape}")
    if num_clients < 1 or num_clients > len(values):
        raise ValueError(
            f"expected between 1 and {len(values)} clients for {len(values)} samples, got {num_clients}; "
            "use fewer clients or a larger data set"
        )
    rng = np.random.default_rng(seed)
    if scheme == "iid":
        parts = np.array_split(rng.permutation(len(values)), num_clients)
    elif scheme == "dirichlet":
        parts = _dirichlet(values, num_clients, dirichlet_alpha, rng)
    elif scheme == "pathological":
        parts = _pathological(values, num_clients, classes_per_client, rng)
    else:
        raise ValueError(f"expected a partition scheme of {', '.join(SCHEMES)}, got {scheme!r}")
    return [np.sort(part).astype(np.int64) for part in parts]


def _dirichlet(labels: np.ndarray, clients: int, alpha: float, rng: np.random.Generator) -> list[np.ndarray]:
    # Above about 1e300 the draw overflows; shares are even to the last digit long before.
    if not 0 < alpha < 1e100:
        raise ValueError(f"expected a positive dirichlet-alpha below 1e100, got {alpha}")
    for _ in range(DIRICHLET_TRIES):
        parts: list[list[np.ndarray]] = [[] for _ in range(clients)]
        for label in np.unique(labels):
            members = rng.permutation(np.flatnonzero(labels == label))
            shares = rng.dirichlet(np.full(clients, alpha))
            cuts = (np.cumsum(shares)[:-1] * len(members)).round().astype(int)
            for part, piece in zip(parts, np.split(members, cuts), strict=True):
                part.append(piece)
        joined = [np.concatenate(part) for part in parts]
        if all(len(part) for part in joined):
            return joined
    raise ValueError(
        f"in {DIRICHLET_TRIES} draws some of {clients} clients stayed without a sample at dirichlet-alpha {alpha}; "
        "use a larger dirichlet-alpha, fewer clients, a larger data set or another seed"
    )


def _pathological(labels: np.ndarray, clients: int, per_client: int, rng: np.random.Generator) -> list[np.ndarray]:
    classes = np.unique(labels)
    if not 1 <= per_client <= len(classes):
        raise ValueError(f"expected classes-per-client between 1 and {len(classes)}, got {per_client}")
    if clients * per_client < len(classes):
        raise ValueError(
            f"{clients} clients with {per_client} class(es) each cannot hold all {len(classes)} classes; "
            f"use at least {-(-len(classes) // per_client)} clients or {-(-len(classes) // clients)} classes per client"
        )
    # Dealt round and round over shuffled classes, a client never gets one class twice, and every class has a holder.
    order = rng.permutation(classes)
    slots = [[order[(client * per_client + k) % len(order)] for k in range(per_client)] for client in range(clients)]
    parts: list[list[np.ndarray]] = [[] for _ in range(clients)]
    for label in classes:
        holders = [client for client in range(clients) if label in slots[client]]
        members = rng.permutation(np.flatnonzero(labels == label))
        if len(holders) > len(members):
            raise ValueError(
                f"class {label} has {len(members)} samples for {len(holders)} clients; some would hold none of it: "
                "use fewer clients or fewer classes per client"
            )
        for client, piece in zip(holders, np.array_split(members, len(holders)), strict=True):
            parts[client].append(piece)
    return [np.concatenate(part) for part in parts]
