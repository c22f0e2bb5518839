"""How samples compare with real images: distances, intervals, the networks that see images, results and their table."""

from jaxdiff.evaluate.features import Features, Network, extract, inception
from jaxdiff.evaluate.intervals import Interval, bootstrap, share
from jaxdiff.evaluate.measures import MEASURES, Judge, judge, known
from jaxdiff.evaluate.reference_classifier import accuracy, classifier, train_judge
from jaxdiff.evaluate.reference_statistics import DataSet, Reference, data_set, reference
from jaxdiff.evaluate.results import FOLDER, Record, Result, Spec, check_same, of_run, read, table, write
from jaxdiff.evaluate.statistics import frechet_distance, inception_score, kernel_distance, precision_recall

__all__ = [
    "FOLDER",
    "MEASURES",
    "DataSet",
    "Features",
    "Interval",
    "Judge",
    "Network",
    "Record",
    "Reference",
    "Result",
    "Spec",
    "accuracy",
    "bootstrap",
    "check_same",
    "classifier",
    "data_set",
    "extract",
    "frechet_distance",
    "inception",
    "inception_score",
    "judge",
    "kernel_distance",
    "known",
    "of_run",
    "precision_recall",
    "read",
    "reference",
    "share",
    "table",
    "train_judge",
    "write",
]
