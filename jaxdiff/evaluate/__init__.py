"""How samples compare with real images: distances, intervals, the networks that see images, results and their table."""

from jaxdiff.evaluate.clip_score import caption_features, clip, clip_scores
from jaxdiff.evaluate.features import Features, Network, extract, inception
from jaxdiff.evaluate.intervals import Interval, bootstrap, mean, share
from jaxdiff.evaluate.measures import MEASURES, Evaluator, Measure, check_measures, evaluator, known_measures
from jaxdiff.evaluate.reference_classifier import accuracy, classifier, train_classifier
from jaxdiff.evaluate.reference_statistics import DataSet, Reference, data_set, reference
from jaxdiff.evaluate.results import (
    FOLDER,
    Record,
    Result,
    Spec,
    check_same,
    describe_sampling,
    read_record,
    results_of_run,
    results_table,
    write_record,
)
from jaxdiff.evaluate.statistics import frechet_distance, inception_score, kernel_distance, precision_recall

__all__ = [
    "FOLDER",
    "MEASURES",
    "DataSet",
    "Features",
    "Interval",
    "Measure",
    "Evaluator",
    "Network",
    "Record",
    "Reference",
    "Result",
    "Spec",
    "accuracy",
    "bootstrap",
    "caption_features",
    "check_measures",
    "check_same",
    "classifier",
    "clip",
    "clip_scores",
    "data_set",
    "describe_sampling",
    "extract",
    "frechet_distance",
    "inception",
    "inception_score",
    "evaluator",
    "kernel_distance",
    "known_measures",
    "mean",
    "results_of_run",
    "precision_recall",
    "read_record",
    "reference",
    "share",
    "results_table",
    "train_classifier",
    "write_record",
]
