"""The figures of the pipeline's reports."""
