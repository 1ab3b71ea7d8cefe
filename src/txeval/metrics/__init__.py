"""The scores as plain functions on arrays."""

from txeval.metrics.average_precision import mean_average_precision
from txeval.metrics.batch_mixing import ilisi
from txeval.metrics.consistency import perturbation_consistency, perturbation_magnitude
from txeval.metrics.knn import knn_accuracy
from txeval.metrics.linear_probe import linear_probe
from txeval.metrics.reconstruction import reconstruction_scores, structural_integrity
from txeval.metrics.relationships import relationship_recall

__all__ = [
    "ilisi",
    "knn_accuracy",
    "linear_probe",
    "mean_average_precision",
    "perturbation_consistency",
    "perturbation_magnitude",
    "reconstruction_scores",
    "relationship_recall",
    "structural_integrity",
]
