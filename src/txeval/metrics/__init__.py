"""The scores as plain functions on arrays."""

from txeval.metrics.average_precision import mean_average_precision
from txeval.metrics.batch_mixing import ilisi
from txeval.metrics.consistency import perturbation_consistency, perturbation_magnitude
from txeval.metrics.convergent_probe import convergent_probe
from txeval.metrics.degree_null import degree_null
from txeval.metrics.knn import knn_accuracy
from txeval.metrics.linear_probe import linear_probe
from txeval.metrics.profiles import pearson_delta
from txeval.metrics.reconstruction import reconstruction_scores, structural_integrity
from txeval.metrics.relationships import relationship_recall

__all__ = [
    "convergent_probe",
    "degree_null",
    "ilisi",
    "knn_accuracy",
    "linear_probe",
    "mean_average_precision",
    "pearson_delta",
    "perturbation_consistency",
    "perturbation_magnitude",
    "reconstruction_scores",
    "relationship_recall",
    "structural_integrity",
]
