"""AIMO 2."""

from kaggle_evaluation.core import Server


class AIMO2InferenceServer(Server):
    column = "question"
