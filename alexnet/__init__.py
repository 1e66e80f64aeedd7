"""AlexNet as it was trained in 2012: the data set, the two-tower network and its training.

This package imports neither Ray nor MLflow; ``pipelines`` does.
"""

__version__ = "0.2.0"
