"""What a workdir contains and where it comes from: for ``lineage`` and ``gc``."""
