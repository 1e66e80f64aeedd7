"""Random sequences of commands and mishaps; after each command a plain model says what must be.

Settings, sources and code change, commands are killed by an exception or as if by SIGKILL, files,
runs, models and aliases are deleted, workdirs are moved and copied, and two commands share a
workdir. The report must belong to the present settings, source and code, and nothing that is valid
is computed again. ``ALEXNET_MEMORY_STEPS`` is the number of sequences.
"""

import functools
import itertools
import os
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis.strategies as st
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, note, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)
from plain_workflow import IMAGES, STAGES, PlainWorkflow, right_of, write_source
from scipy.stats import binomtest

from alexnet import storage
from alexnet.shards.format import SPLITS, read_row_group
from alexnet.shards.manifest import read_manifest
from pipelines import evaluate, full_run, promote, train
from pipelines.preprocessing import stage as preprocess_stage
from pipelines.results.stage_results import FullRunResult
from pipelines.tracking import registry

pytestmark = pytest.mark.slow

SEQUENCES = os.environ.get("ALEXNET_MEMORY_STEPS")


class Kill(BaseException):
    """The command is killed."""


class Choice(NamedTuple):
    """What a command is given."""

    epochs: int
    rows_per_shard: int
    champion: str


class Training(NamedTuple):
    """What decides a trained model."""

    epochs: int
    content: str
    code: str


class Champion(NamedTuple):
    """A model with the alias ``champion``."""

    model: str
    evaluation: str
    """Run of the evaluation with which it was promoted."""


CHOICES = st.builds(
    Choice, st.sampled_from([1, 2]), st.sampled_from([1, 8]), st.sampled_from(["better", "always"])
)

MOMENTS = st.integers(1, 25) | st.integers(1, 8)
"""Of a command's moments; between the first ones, most is written."""


def mishap(**strategies: Any) -> Callable[[Callable[..., None]], Any]:
    """A rule that a command mostly follows at once; else it combines with other mishaps."""

    def decorate(function: Callable[..., None]) -> Any:
        @functools.wraps(function)
        def call(self: "WorkflowMemory", run: int, **values: Any) -> None:
            function(self, **values)
            if run:
                self.check_command()

        as_rule: Any = rule(run=st.integers(0, 2), **strategies)
        return as_rule(call)

    return decorate


class WorkflowMemory(RuleBasedStateMachine):
    """The rules and the plain model."""

    database: Path

    @initialize(choice=CHOICES)
    def create(self, choice: Choice) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="memory-"))
        self.patch = pytest.MonkeyPatch()
        self.plain = PlainWorkflow(self.folder, self.database)
        self.plain.install(self.patch)
        self.numbers = itertools.count(2)
        self.version, self.choice = 1, choice
        self.valid: dict[str, set[Any]] = {stage: set() for stage in STAGES}
        """What must be skipped: what decides the result of each stage that has one."""
        self.started: set[tuple[int, int, str]] = set()
        """Source, rows per shard and code of each command; other data sets can't be skipped."""
        self.shards: dict[tuple[int, int, str], set[Path]] = {}
        """Shards that must be kept, by source, rows per shard and code: paths in the workdir."""
        self.trainings: dict[Training, int] = {}
        """The number of the training whose checkpoints must be used."""
        self.report: FullRunResult | None = None
        self.abandoned: dict[Path, list[Any]] = {}
        """Workdirs that were copied, and the state of their files, which must not change."""
        self.moments, self.like_sigkill = 0, False
        """Moments until the command is killed; 0: it is not killed."""
        self._watch()

    def teardown(self) -> None:
        self.patch.undo()
        shutil.rmtree(self.folder)

    def _watch(self) -> None:
        """Commands can be killed before each piece of work, and between two writes."""
        self.plain.on_work = self._moment

        def watched(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                self._moment(function.__name__)
                return function(*arguments, **options)

            return call

        for owner, name in (
            *itertools.product([storage], ["write_json", "delete_folder"]),
            *itertools.product([registry], ["register", "set_alias"]),
            *itertools.product([preprocess_stage, train, evaluate, promote], ["run_stage"]),
            (full_run, "close_run"),
        ):
            self.patch.setattr(owner, name, watched(getattr(owner, name)))

    def _moment(self, what: str) -> None:
        self.moments -= 1
        if self.moments == 0:
            note(f"killed before {what}")
            if self.like_sigkill:
                shutil.copytree(self.plain.workdir, self.folder / "left")
            raise Kill

    def _is_killed(self, moments: int, like_sigkill: bool, **more: Any) -> bool:
        """Run a command that is killed at a moment, unless it ends before."""
        self.moments, self.like_sigkill = moments, like_sigkill
        try:
            self._run(self.choice, **more)
        except Kill:
            # What the exception's handlers have written does not count: SIGKILL leaves them none.
            if like_sigkill:
                shutil.rmtree(self.plain.workdir)
                self._go_to(shutil.move, self.folder / "left")
            return True
        finally:
            self.moments = 0
        return False

    def _run(self, choice: Choice, **more: Any) -> FullRunResult:
        self.started.add((self.version, choice.rows_per_shard, self.plain.code["preprocess"]))
        return self.plain.run(**choice._asdict(), **more)

    def _go_to(self, move: Callable[[Path, Path], Any], old: Path) -> None:
        """Move or copy a workdir to a name that no process has used yet."""
        self.plain.workdir = self.folder / f"work{next(self.numbers)}"
        move(old, self.plain.workdir)

    # Rules: commands

    @rule(choice=st.none() | CHOICES)
    def command(self, choice: Choice | None) -> None:
        self.choice = choice or self.choice
        self.check_command()

    @rule(
        moments=MOMENTS,
        like_sigkill=st.booleans(),
        between=st.none() | CHOICES,
    )
    def killed_command(self, moments: int, like_sigkill: bool, between: Choice | None) -> None:
        """A command that is killed, perhaps another one, and the first again."""
        self._is_killed(moments, like_sigkill)
        self._forget_preprocess()
        self.valid["promote"].clear()
        killed = self.choice
        for choice in [between, killed] if between else [killed]:
            self.choice = choice
            self.check_command()

    @rule(
        choice=st.none() | CHOICES,
        before=st.none() | MOMENTS,
        moments=st.lists(MOMENTS, max_size=2),
        like_sigkill=st.booleans(),
        force=st.booleans(),
        moved=st.booleans(),
    )
    def forced_command(
        self,
        choice: Choice | None,
        before: int | None,
        moments: list[int],
        like_sigkill: bool,
        force: bool,
        moved: bool,
    ) -> None:
        """A command with ``--force`` that is killed and resumed does its work once.

        What a killed command without ``--force`` has left does not count.
        """
        self.choice = choice or self.choice
        if before:
            self._is_killed(before, like_sigkill)
        made, trainings = len(self.plain.made), self.plain.trainings
        for moment in moments:
            if not self._is_killed(moment, like_sigkill, force=True):
                return self._after_force()
            if moved:
                self._go_to(shutil.move, self.plain.workdir)
        force = force or not moments
        result = self._run(self.choice, force=force)
        self._check_report(result, self.choice)
        if force:
            files = [path.name for path in self._shard_paths(result)]
            done = [Path(file).name for file in self.plain.made[made:]]
            assert sorted(done) == sorted(files), "each shard is made once"
            assert self.plain.trainings == trainings + 1, "one new training"
            assert self.plain.model(result)["training"] == self.plain.trainings
            steps = [step for step, _ in self.plain.curve(result)]
            assert steps == list(range(1, self.choice.epochs + 1))
        return self._after_force()

    def _after_force(self) -> None:
        self._forget_preprocess()
        self.valid = {stage: set() for stage in STAGES}
        self.trainings.clear()
        self.check_command()

    @rule(other=CHOICES)
    def two_commands(self, other: Choice) -> None:
        """Two commands share the workdir at the same time."""
        choices = [self.choice, other]
        with ThreadPoolExecutor(2) as threads:
            results = list(threads.map(self._run, choices))
        for result, choice in zip(results, choices, strict=True):
            self._check_report(result, choice)
        self.valid["promote"].clear()
        self._forget_preprocess()
        self.check_command()

    # Rules: changes and mishaps

    @mishap(version=st.sampled_from([1, 2]))
    def change_source(self, version: int) -> None:
        self.version = version
        write_source(self.plain.source, version)

    @mishap(stage=st.sampled_from(STAGES[:3]), code=st.sampled_from("01"))
    def change_code(self, stage: str, code: str) -> None:
        self.plain.code[stage] = code

    @mishap()
    def move(self) -> None:
        self._go_to(shutil.move, self.plain.workdir)

    @mishap()
    def copy(self) -> None:
        """The original stays, with contents that must not be read."""
        old = self.plain.workdir
        self._go_to(shutil.copytree, old)
        for path in [path for path in old.rglob("*") if path.is_file()]:
            path.write_bytes(b"not to be read")
        self.abandoned[old] = state_of(old)

    @mishap(
        stage=st.sampled_from(STAGES), damage=st.sampled_from([None, b"", b'{"format": 3', b"[]"])
    )
    def lose_records(self, stage: str, damage: bytes | None) -> None:
        for path in (self.plain.workdir / "stages" / stage).glob("*.json"):
            path.unlink() if damage is None else path.write_bytes(damage)
        self.valid[stage].clear()

    @precondition(lambda self: self.report)
    @mishap(what=st.sampled_from(["manifest", "shard", "statistics", "predictions", "training"]))
    def lose_files(self, what: str) -> None:
        workdir = self.plain.workdir
        if what == "training":
            shutil.rmtree(workdir / "training", ignore_errors=True)
            self.trainings.clear()
        elif what == "predictions":
            shutil.rmtree(workdir / "evaluations", ignore_errors=True)
            self.valid["evaluate"].clear()
        elif what == "shard":
            for path in workdir.glob("shards/*/train/part-00000.parquet"):
                path.unlink()
                for kept in self.shards.values():
                    kept.discard(path.relative_to(workdir))
            self.valid["preprocess"].clear()
        else:
            for path in workdir.glob(f"shards/*/{what}.*"):
                path.unlink()
            self._forget_preprocess()

    @precondition(lambda self: self.report)
    @mishap(stage=st.sampled_from(STAGES))
    def delete_run(self, stage: Any) -> None:
        assert self.report
        self.plain.client.delete_run(self.report.stages[stage]["run_id"])
        self.valid[stage].clear()
        self.report = None

    @precondition(lambda self: self.report)
    @mishap(what=st.sampled_from(["model", "version", "candidate", "champion"]))
    def delete_in_registry(self, what: str) -> None:
        assert self.report
        client, stages = self.plain.client, self.report.stages
        if what == "model":
            client.delete_logged_model(stages["train"]["model"].removeprefix("models:/"))
            self.valid["train"].clear()
        elif what == "version":
            client.delete_model_version("alexnet", stages["promote"]["version"])
        else:
            client.delete_registered_model_alias("alexnet", what)
        self.valid["promote"].clear()
        self.report = None

    # The plain model

    def check_command(self) -> None:
        plain, made = self.plain, len(self.plain.made)
        evaluated, trainings, champion = plain.evaluated, plain.trainings, self._champion()
        started = self.started.copy()
        result = self.report = self._run(self.choice)
        self._check_report(result, self.choice)
        self._check_registry(result, champion)
        keys = self._keys(result)
        computed = [
            stage
            for stage in STAGES
            if keys[stage] in self.valid[stage] and stage not in result.skipped
        ]
        assert computed == [], "computed again"
        assert keys["preprocess"] in started or "preprocess" not in result.skipped
        again = {self._shard_path(result, file) for file in plain.made[made:]}
        assert again & self.shards.get(keys["preprocess"], set()) == set(), "shards made again"
        if keys["train"] in self.trainings:
            assert plain.trainings == trainings, "trained again"
        assert plain.evaluated - evaluated == ("evaluate" not in result.skipped)
        assert len(set(plain.epochs)) == len(plain.epochs), "an epoch was trained twice"
        for folder, state in self.abandoned.items():
            assert state_of(folder) == state, "another workdir was written"
        self._remember(result, keys)
        assert self._run(self.choice).skipped == STAGES, "the same command skips everything"

    def _remember(self, result: FullRunResult, keys: dict[str, Any]) -> None:
        rows = self.choice.rows_per_shard
        if "preprocess" not in result.skipped:
            # The folder may have held the shards of another source or code; if these have the same
            # content, either are skipped as long as their record and their run exist.
            self._forget_preprocess(rows)
            self.shards[keys["preprocess"]] = self._shard_paths(result)
        if "promote" not in result.skipped:
            self.valid["promote"].clear()  # The aliases have moved.
        if Path(result.stages["train"]["checkpoint"]).is_dir():
            # A model whose checkpoints were deleted is skipped, but can't be finished again.
            self.trainings[keys["train"]] = self.plain.model(result)["training"]
        for stage in STAGES:
            self.valid[stage].add(keys[stage])

    def _forget_preprocess(self, rows: int | None = None) -> None:
        """Nothing is known about the shards any more, or of those with some rows per shard."""
        kept = {key for key in self.shards if rows is not None and key[1] != rows}
        self.shards = {key: self.shards[key] for key in kept}
        self.valid["preprocess"] &= kept

    def _keys(self, result: FullRunResult) -> dict[str, Any]:
        """What decides the result of each stage."""
        code, choice, stages = self.plain.code, self.choice, result.stages
        model, evaluated = stages["train"]["model"], stages["evaluate"]
        return {
            "preprocess": (self.version, choice.rows_per_shard, code["preprocess"]),
            "train": Training(choice.epochs, stages["preprocess"]["content"], code["train"]),
            "evaluate": (model, evaluated["validation"], code["evaluate"]),
            "promote": (evaluated["run_id"], choice.champion),
        }

    def _shard_path(self, result: FullRunResult, file: str) -> Path:
        shards = Path(result.stages["preprocess"]["shards"])
        return shards.relative_to(self.plain.workdir) / file

    def _shard_paths(self, result: FullRunResult) -> set[Path]:
        manifest = read_manifest(result.stages["preprocess"]["shards"])
        files = [shard.file for split in SPLITS for shard in manifest.shards[split]]
        return {self._shard_path(result, file) for file in files}

    def _champion(self) -> Champion | None:
        model = self.plain.alias("champion")
        if model is None:
            return None
        tags = self.plain.client.get_model_version_by_alias("alexnet", "champion").tags
        return Champion(model, tags["evaluation.run"])

    def _check_report(self, result: FullRunResult, choice: Choice) -> None:
        """The report and the files belong to the present choice, source and code."""
        stages, plain = result.stages, self.plain
        manifest = read_manifest(stages["preprocess"]["shards"])
        assert Path(manifest.folder).is_relative_to(plain.workdir)
        assert stages["preprocess"]["content"] == manifest.content_digest()
        assert manifest.settings["rows_per_shard"] == choice.rows_per_shard
        stored = [
            digest
            for split in SPLITS
            for group in manifest.row_groups(split)
            for digest in read_row_group(group, ["sha256"])["sha256"].to_pylist()
        ]
        images = plain.source.rglob("*.bmp")
        assert sorted(stored) == sorted(storage.sha256(str(path)) for path in images)

        model = plain.model(result)
        made_of = Training(model["epochs"], model["content"], model["code"])
        assert made_of == (choice.epochs, manifest.content_digest(), plain.code["train"])
        curve = plain.curve(result)
        assert len({step for step, _ in curve}) == len(curve), "a point is twice in the curve"
        assert {value for _, value in curve} <= {float(model["training"])}

        evaluated, validation = stages["evaluate"], manifest.content_digest("val")
        assert evaluated["models"] == [stages["train"]["model"]]
        assert evaluated["validation"] == validation
        right = right_of(model, validation, plain.code["evaluate"])
        assert evaluated["top1_error"] == round(100 * (IMAGES - right) / IMAGES, 3)
        assert Path(evaluated["predictions"]).is_file()
        assert Path(evaluated["predictions"]).is_relative_to(plain.workdir)
        for line in stages.values():
            info = plain.client.get_run(line["run_id"]).info
            assert (info.status, info.lifecycle_stage) == ("FINISHED", "active")

    def _check_registry(self, result: FullRunResult, before: Champion | None) -> None:
        """The aliases are as the rule for the champion says."""
        plain, evaluated = self.plain, result.stages["evaluate"]
        (model,) = evaluated["models"]
        assert plain.alias("candidate") == model
        tags = plain.client.get_model_version_by_alias("alexnet", "candidate").tags
        assert tags["top1_error"] == str(evaluated["top1_error"])
        assert tags["evaluation.run"] == evaluated["run_id"]
        wins = (
            self.choice.champion == "always"
            or (before is not None and before.model == model)
            or self._is_better(result, before)
        )
        assert plain.alias("champion") == (model if wins else before.model if before else None)
        assert result.stages["promote"]["champion"] == wins

    def _is_better(self, result: FullRunResult, before: Champion | None) -> bool:
        """The rule for another model than the champion, or for the first one.

        The images that one of two models of these tests classifies correctly are among those that
        the other one does.
        """
        evaluated = result.stages["evaluate"]
        right = self._right(evaluated["run_id"])
        assert right is not None
        if before is None:
            return float(binomtest(right, IMAGES, 0.5, alternative="greater").pvalue) < 0.05
        for run_id in [
            *self._evaluations(before.model, evaluated["validation"]),
            before.evaluation,
        ]:
            if (of_champion := self._right(run_id)) is not None:
                validation = self.plain.client.get_run(run_id).data.tags["validation.content"]
                more = right - of_champion
                same_images = validation == evaluated["validation"]
                return same_images and more > 0 and float(binomtest(0, more).pvalue) < 0.05
        return False

    def _evaluations(self, model: str, validation: str) -> list[str]:
        """Runs that evaluated a model on these images, the newest first."""
        runs = self.plain.client.search_runs(["1"], "", order_by=["attributes.start_time DESC"])
        wanted = {"models": model, "validation.content": validation}
        return [run.info.run_id for run in runs if wanted.items() <= run.data.tags.items()]

    def _right(self, run_id: str) -> int | None:
        """How many of an evaluation's predictions are right; None if it has logged none."""
        folder = Path(self.plain.client.get_run(run_id).info.artifact_uri)
        path = folder / "predictions.parquet"
        if not path.is_file():
            return None
        table: pa.Table = pq.read_table(path)
        rows: list[dict[str, Any]] = table.to_pylist()
        assert len(rows) == IMAGES
        return sum(bool(row["labels"][0] == row["label"]) for row in rows)


def state_of(folder: Path) -> list[Any]:
    """Names, sizes and times of all files; folders that are locked alone have new times."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return [(path, path.stat().st_size, path.stat().st_mtime_ns) for path in files]


def test_random_sequences(empty_database: Path) -> None:
    WorkflowMemory.database = empty_database
    run_state_machine_as_test(
        WorkflowMemory,
        settings=settings(
            max_examples=int(SEQUENCES or 2),
            stateful_step_count=20 if SEQUENCES else 8,
            derandomize=not SEQUENCES,
            database=None,
            deadline=None,
            # A sequence takes seconds: a failing one is printed as it is.
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
