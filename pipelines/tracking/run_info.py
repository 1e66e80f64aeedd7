"""What MLflow holds about a run that is named by its id, its name or its stage key."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from alexnet.errors import UserError
from pipelines.tracking.store import Store, require_server

CHILD = "run."
"""Prefix of a full run's tags that name the runs of its stages."""
_MOST = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """A run."""

    run_id: str
    name: str
    stage: str
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    datasets: Mapping[str, str]
    """Digests by name."""

    @property
    def children(self) -> dict[str, str]:
        """Of a full run: the ids of its stages' runs, by stage."""
        return {
            name.removeprefix(CHILD): run_id
            for name, run_id in self.tags.items()
            if name.startswith(CHILD)
        }


def find_run(store: Store, name: str) -> RunInfo:
    """A run that exists and is not deleted; the newest one if several have the name.

    Raises:
        UserError: there is none.
    """
    if re.fullmatch("[0-9a-f]{32}", name):
        run = store.get_or_none(lambda: store.client.get_run(name))
        if run and run.info.lifecycle_stage != "active":
            raise UserError(
                f"run {name} was deleted in MLflow; `mlflow runs restore --run-id {name}` "
                "restores it"
            )
    elif "'" in name and '"' in name:  # MLflow's filters have no escapes.
        run = None
    else:
        attribute = "tags.`stage.key`" if _is_key(name) else "attributes.run_name"
        quote = '"' if "'" in name else "'"
        with require_server(store.uri):
            runs = store.client.search_runs(
                [store.experiment_id],
                f"{attribute} = {quote}{name}{quote}",
                max_results=_MOST,
                order_by=["attributes.start_time DESC"],
            )
        run = runs[0] if runs else None
    if run is None:
        raise UserError(
            f"{name}: no run of this experiment has this id, name or stage key; check it, "
            "--experiment and --tracking-uri, or whether somebody has deleted the run in MLflow"
        )
    return _info(run)


def _is_key(name: str) -> bool:
    return re.fullmatch("[0-9a-f]{16}", name) is not None


def _info(run: Any) -> RunInfo:
    tags = dict(run.data.tags)
    name = str(run.info.run_name or run.info.run_id)
    inputs = run.inputs.dataset_inputs if run.inputs else []
    return RunInfo(
        run_id=str(run.info.run_id),
        name=name,
        # Full runs of earlier versions have no such tag.
        stage=tags.get("stage", "full_run" if any(t.startswith(CHILD) for t in tags) else name),
        params=dict(run.data.params),
        metrics=dict(run.data.metrics),
        tags=tags,
        datasets={each.dataset.name: each.dataset.digest for each in inputs},
    )
