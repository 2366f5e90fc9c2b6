"""AIMO 3."""

from kaggle_evaluation.core import Server


class AIMO3InferenceServer(Server):
    pass
