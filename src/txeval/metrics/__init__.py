"""The scores as plain functions on arrays."""

from txeval.metrics.consistency import perturbation_consistency, perturbation_magnitude
from txeval.metrics.reconstruction import reconstruction_scores, structural_integrity
from txeval.metrics.relationships import relationship_recall

__all__ = [
    "perturbation_consistency",
    "perturbation_magnitude",
    "reconstruction_scores",
    "relationship_recall",
    "structural_integrity",
]
