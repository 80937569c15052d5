"""Differential privacy: the guarantee of a release, and an audit's measurement of it."""

from fl_precode.privacy.accountant import GaussianReleases, composed_pure
from fl_precode.privacy.guarantee import (
    Conditions,
    Guarantee,
    PrivacyStatement,
    privacy_statement,
    weakest_statement,
)
from fl_precode.privacy.mechanism import Claim, Mechanism, NoMechanism, mechanism_of

__all__ = [
    "Claim",
    "Conditions",
    "Guarantee",
    "Mechanism",
    "NoMechanism",
    "GaussianReleases",
    "PrivacyStatement",
    "composed_pure",
    "mechanism_of",
    "privacy_statement",
    "weakest_statement",
]
