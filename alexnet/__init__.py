"""AlexNet as it was trained in 2012: the data set, the two-tower network and its training.

Nothing in this package knows about clusters or experiment trackers; ``pipelines`` does.
"""
