"""Which version becomes champion, on a real model registry."""

import runpy
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from factories import evaluate_result, predictions_table

from alexnet import predictions
from alexnet.errors import UserError
from alexnet.shards.format import write_table
from pipelines import promote
from pipelines.promotion.decision import Decision, decide
from pipelines.results.records import StageKey, StageOutcome
from pipelines.results.stage_results import EvaluateResult, PromoteResult
from pipelines.settings import PromoteCommandSettings, PromoteSettings, Settings
from pipelines.tracking import evaluations, registry
from pipelines.tracking.promotion_lock import promotion_lock
from pipelines.tracking.registry import ROLLED_BACK_TAG, Version
from pipelines.tracking.run import active_run, open_run
from pipelines.tracking.store import Store, connect

IMAGES = 120
LABELS = [index % 3 for index in range(IMAGES)]


def guesses(wrong: Sequence[int]) -> list[int]:
    """Predictions that are wrong for these images only."""
    return [(label + (index in set(wrong))) % 3 for index, label in enumerate(LABELS)]


def predicted(wrong: Sequence[int], validation: str = "same") -> predictions.Predictions:
    table = predictions_table(LABELS, guesses(wrong), validation=validation)
    return predictions.of_table(table)


def decision(
    new: Sequence[int], old: Sequence[int], version: Version | None = None, **rule: Any
) -> Decision:
    settings = PromoteSettings.model_validate(rule)
    of_champion = predicted(old)
    return decide(
        settings,
        version or Version("4", {}),
        predicted(new),
        Version("3", {}),
        of_champion,
        evaluation="0" * 16,
    )


@pytest.mark.parametrize(
    ("new", "old", "rule", "wins", "words"),
    [
        # Only the champion is wrong for six images: p = 2 / 2^6.
        ([], range(6), {}, True, "5.00 percentage points lower"),
        ([], range(5), {}, False, "not significant at --significance 0.05"),
        ([], range(5), {"significance": 0.07}, True, "p = 0.0625"),
        (range(6), [], {}, False, "not better"),
        (range(6), range(6), {}, False, "not better"),
        ([], range(6), {"margin": 5.0}, True, "5.00 percentage points lower"),
        ([], range(6), {"margin": 5.1}, False, "less than --margin 5.1"),
        (range(60), [], {"champion": "always"}, True, "--champion always"),
        ([], range(60), {"champion": "never"}, False, "--champion never"),
    ],
)
def test_the_rule(
    new: Sequence[int], old: Sequence[int], rule: dict[str, Any], wins: bool, words: str
) -> None:
    decided = decision(new, old, **rule)
    assert decided.wins == wins
    assert words in decided.reason


def test_the_decision_table_contains_counts_p_interval_and_both_versions() -> None:
    table = decision([0, 1], range(1, 9)).table("4")
    assert table["version"] == "4"
    assert table["champion until now"] == "version 3"
    assert table["only version 4 right"] == "7"
    assert table["only version 3 right"] == "1"
    assert (table["both right"], table["both wrong"]) == ("111", "1")
    assert table["McNemar's p"] == "0.0703"
    assert table["error is lower by"] == "5.00 percentage points"
    assert table["95 % interval"].endswith("percentage points")
    assert "| McNemar's p | 0.0703 |" in decision([0, 1], range(1, 9)).markdown("4")


@pytest.mark.parametrize(("wrong", "wins"), [(80, False), (75, False), (40, True)])
def test_the_first_version_must_be_better_than_chance(wrong: int, wins: bool) -> None:
    decided = decide(
        PromoteSettings(), Version("1", {}), predicted(range(wrong)), None, None, evaluation=""
    )
    assert decided.wins == wins
    assert ("no version was champion before" if wins else "no better than chance") in decided.reason


def test_eighteen_images_of_three_classes_with_two_thirds_wrong_are_chance() -> None:
    labels = [0, 1, 2] * 6
    wrong = [(label + (index >= 6)) % 3 for index, label in enumerate(labels)]
    one = predictions.of_table(predictions_table(labels, wrong))
    decided = decide(PromoteSettings(), Version("1", {}), one, None, None, evaluation="")
    assert not decided.wins
    assert "66.67 % top-1 error on 18 images" in decided.reason


def test_a_single_class_is_no_better_than_chance() -> None:
    one = predictions.of_table(predictions_table([0] * 9, [0] * 9, classes=1))
    decided = decide(PromoteSettings(), Version("1", {}), one, None, None, evaluation="")
    assert not decided.wins


def test_a_rolled_back_version_needs_the_users_word() -> None:
    back = Version("4", {ROLLED_BACK_TAG: "bad at night"})
    decided = decision([], range(30), back)
    assert not decided.wins
    assert "bad at night" in decided.reason
    assert decision([], range(30), back, champion="always").wins


@pytest.fixture
def store(mlflow_workdir: str) -> Store:
    return connect(Settings(workdir=mlflow_workdir))


class Models:
    """Models that are evaluated and promoted."""

    def __init__(self, store: Store, folder: Path) -> None:
        self.store, self.folder = store, folder

    def evaluate(
        self,
        wrong: Sequence[int],
        *,
        model: str = "",
        validation: str = "same",
        logged: bool = True,
    ) -> StageOutcome[EvaluateResult]:
        """An evaluation of a new model, or of a given one, as the stage records it."""
        if not model:
            new = self.store.client.create_logged_model(self.store.experiment_id)
            self.store.client.finalize_logged_model(new.model_id, "READY")
            model = f"models:/{new.model_id}"
        table = predictions_table(LABELS, guesses(wrong), model=model, validation=validation)
        run_id = open_run(self.store, "evaluate", resume=None, parent=None)
        key = StageKey(stage="evaluate", settings={}, inputs={"run": run_id}, code="")
        path = self.folder / "evaluations" / key.digest / "predictions.parquet"
        path.parent.mkdir(parents=True)
        write_table(str(path), table)
        with active_run(self.store, run_id) as run:
            run.set_tags({"stage": "evaluate", "stage.key": key.digest})
            evaluations.tag(run, [model], validation)
            if logged:
                evaluations.log_predictions(run, table)
        result = evaluate_result(models=[model], validation=validation, predictions=str(path))
        return StageOutcome(key=key, result=result, seconds=1.0, run_id=run_id, skipped=False)

    def promote(
        self, evaluated: StageOutcome[EvaluateResult], workdir: str = "", **settings: Any
    ) -> StageOutcome[PromoteResult]:
        folder = self.folder / workdir if workdir else self.folder
        values = {"workdir": str(folder), "tracking_uri": self.store.uri} | settings
        return promote.run(PromoteSettings.model_validate(values), evaluated=evaluated)

    def roll_back(self, reason: str) -> dict[str, Any]:
        values = {"workdir": str(self.folder), "rollback": reason}
        settings = PromoteCommandSettings.model_validate(values)
        return promote.command(settings).to_json()

    def champion(self) -> str | None:
        version = registry.by_alias(self.store, "alexnet", "champion")
        return version.version if version else None


@pytest.fixture
def models(store: Store, tmp_path: Path) -> Models:
    return Models(store, tmp_path)


def test_a_better_version_takes_the_alias(models: Models) -> None:
    first = models.promote(models.evaluate(range(30))).result
    assert (first.version, first.champion, first.champion_version) == ("1", True, "1")
    assert first.chance_p is not None
    assert first.chance_p < 1e-6
    equal = models.promote(models.evaluate(range(29))).result
    assert (equal.version, equal.champion, equal.champion_version) == ("2", False, "1")
    assert equal.mcnemar_p == 1
    better = models.promote(models.evaluate(range(10))).result
    assert (better.champion, better.champion_version, better.compared_with) == (True, "3", "1")
    counts = (better.both_right, better.only_version_right, better.only_champion_right)
    assert counts == (90, 20, 0)
    assert better.both_wrong == 10
    assert better.error_reduction == pytest.approx(100 * 20 / 120, abs=1e-3)
    assert better.mcnemar_p == pytest.approx(2 / 2**20)
    assert models.champion() == "3"


def test_the_decision_is_in_mlflow_and_in_the_versions_description(models: Models) -> None:
    models.promote(models.evaluate(range(30)))
    outcome = models.promote(models.evaluate(range(10)))
    client = models.store.client
    (table,) = (f for f in client.list_artifacts(outcome.run_id) if f.path == "decision.json")
    text = client.download_artifacts(outcome.run_id, table.path)
    assert "McNemar" in Path(text).read_text()
    assert client.get_run(outcome.run_id).data.metrics["mcnemar_p"] < 1e-5
    version = client.get_model_version("alexnet", "2")
    assert "| champion until now | version 1 |" in version.description


def test_a_promotion_is_skipped_if_nothing_has_changed(models: Models) -> None:
    evaluated = models.evaluate(range(30))
    assert not models.promote(evaluated).skipped
    assert models.promote(evaluated).skipped


def test_the_champions_predictions_are_found_from_another_workdir(models: Models) -> None:
    champion = models.evaluate(range(30))
    models.promote(champion)
    Path(champion.result.predictions).unlink()
    result = models.promote(models.evaluate(range(10)), "elsewhere").result
    assert (result.champion, result.only_version_right) == (True, 20)


@pytest.mark.parametrize(("validation", "logged"), [("other", True), ("same", False)])
def test_a_champion_without_predictions_for_these_images(
    models: Models, validation: str, logged: bool
) -> None:
    """It is reported in words, and evaluating the champion helps."""
    first = models.evaluate(range(30), validation=validation, logged=logged)
    models.promote(first)
    better = models.evaluate(range(10))
    result = models.promote(better).result
    assert (result.champion, result.comparable) == (False, False)
    assert "version 1 has no predictions for these validation images" in result.reason
    assert f"pipelines/promote.py --evaluation {better.key.digest}" in result.reason
    assert models.promote(better).skipped
    models.evaluate(range(30), model=first.result.models[0])
    again = models.promote(better)
    assert not again.skipped
    assert again.result.champion


def test_rollback(models: Models) -> None:
    models.promote(models.evaluate(range(40)))
    models.promote(models.evaluate(range(20)))
    third = models.evaluate([])
    models.promote(third)
    assert models.champion() == "3"
    result = models.roll_back("bad at night")
    assert result == {
        "stage": "promote",
        "registered_model": "alexnet",
        "champion_version": "2",
        "rolled_back": "3",
        "reason": "bad at night",
    }
    assert models.champion() == "2"
    description = models.store.client.get_model_version("alexnet", "3").description
    assert description.startswith("Rollback: champion is version 2 again instead of 3")
    assert "| version | 3 |" in description
    models.promote(third)
    assert models.champion() == "2", "the same promotion does not undo the rollback"
    models.roll_back("that one too")
    assert models.champion() == "1"
    with pytest.raises(UserError, match="version 1 had no champion before it"):
        models.roll_back("and the first")
    models.promote(third, champion="always")
    assert models.champion() == "3"


def test_rollback_to_a_deleted_version_changes_nothing(models: Models) -> None:
    models.promote(models.evaluate(range(40)))
    models.promote(models.evaluate([]))
    models.store.client.delete_model_version("alexnet", "1")
    with pytest.raises(UserError, match="version 1 of alexnet does not exist or was deleted"):
        models.roll_back("bad")
    assert models.champion() == "2"


def test_rollback_without_a_champion(models: Models) -> None:
    with pytest.raises(UserError, match="alexnet has no champion to roll back"):
        models.roll_back("bad")


def test_an_alias_that_another_program_moved_is_reported(
    models: Models, capsys: pytest.CaptureFixture[str]
) -> None:
    models.promote(models.evaluate(range(40)))
    models.promote(models.evaluate(range(41)))
    models.store.client.set_registered_model_alias("alexnet", "champion", "2")
    models.promote(models.evaluate(range(10)))
    moved = "the alias champion was moved from version 1 to 2 by another program"
    assert moved in capsys.readouterr().out
    assert models.champion() == "3"


@pytest.mark.parametrize("moved_before", [True, False])
def test_an_alias_that_moves_during_a_promotion(
    models: Models,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    moved_before: bool,
) -> None:
    """Before it is set: the decision is made again. After: the result names the version."""
    models.promote(models.evaluate(range(40)))
    models.promote(models.evaluate([]), champion="never")
    moved: list[bool] = []

    def move(*_: object) -> None:
        if not moved:
            moved.append(True)
            models.store.client.set_registered_model_alias("alexnet", "champion", "2")

    if moved_before:

        def move_and_decide(*arguments: Any, **named: Any) -> Decision:
            move()
            return decide(*arguments, **named)

        monkeypatch.setattr(promote, "decide", move_and_decide)
    else:
        set_alias = registry.set_alias

        def set_and_lose(store: Store, name: str, alias: str, version: str) -> None:
            set_alias(store, name, alias, version)
            if alias == "champion":
                move()

        monkeypatch.setattr(registry, "set_alias", set_and_lose)
    result = models.promote(models.evaluate(range(10))).result
    assert moved
    assert (result.champion, result.champion_version, models.champion()) == (False, "2", "2")
    if moved_before:
        assert "from version 1 to 2 meanwhile; deciding again" in capsys.readouterr().out
        assert result.compared_with == "2"
    else:
        assert "moved to version 2 by another program" in result.reason


def test_two_promotions_at_once(models: Models) -> None:
    """In two workdirs: each is decided about after the other; the better one stays champion."""
    models.promote(models.evaluate(range(60)))
    candidates = [models.evaluate(range(20)), models.evaluate([])]
    results: dict[int, PromoteResult] = {}
    barrier = threading.Barrier(2)

    def run(number: int) -> None:
        barrier.wait()
        results[number] = models.promote(candidates[number], f"workdir{number}").result

    threads = [threading.Thread(target=run, args=[number]) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    champion = registry.by_alias(models.store, "alexnet", "champion")
    assert champion
    assert champion.source == candidates[1].result.models[0]
    better, worse = results[1], results[0]
    assert better.champion
    assert {better.compared_with, worse.compared_with} in (
        {"1", better.version},  # The better one was first, and the worse one lost to it.
        {"1", worse.version},  # It was second, and took the alias from the worse one.
    )


def test_a_lock_excludes_others_and_leaves_nothing(store: Store) -> None:
    inside: list[int] = []
    most: list[int] = []

    def enter(number: int) -> None:
        for _ in range(3):
            with promotion_lock(store, "alexnet"):
                inside.append(number)
                most.append(len(inside))
                store.client.set_registered_model_tag("alexnet", "inside", str(number))
                assert store.client.get_registered_model("alexnet").tags["inside"] == str(number)
                inside.remove(number)

    threads = [threading.Thread(target=enter, args=[number]) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 9
    assert set(store.client.get_registered_model("alexnet").tags) == {"inside"}


def test_a_killed_promotion_delays_no_other(store: Store) -> None:
    store.client.create_registered_model("alexnet")
    store.client.set_registered_model_tag("alexnet", "promoting.killed", "1700000000.0")
    with promotion_lock(store, "alexnet"):
        pass


def test_a_version_that_is_deleted_meanwhile(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    models.promote(models.evaluate(range(40)))

    def delete_and_decide(
        settings: PromoteSettings, version: Version, *rest: Any, **named: Any
    ) -> Decision:
        models.store.client.delete_model_version("alexnet", version.version)
        return decide(settings, version, *rest, **named)

    monkeypatch.setattr(promote, "decide", delete_and_decide)
    evaluated = models.evaluate([])
    with pytest.raises(UserError, match=r"registered model alexnet: .*run the command again"):
        models.promote(evaluated)
    assert models.champion() == "1"
    monkeypatch.undo()
    result = models.promote(evaluated).result
    assert (result.version, result.champion) == ("3", True)


def test_lost_predictions_are_reported_before_anything_is_registered(models: Models) -> None:
    evaluated = models.evaluate(range(10))
    Path(evaluated.result.predictions).unlink()
    with pytest.raises(UserError, match="not a file of predictions"):
        models.promote(evaluated)
    assert models.store.client.search_model_versions("name = 'alexnet'") == []


@pytest.mark.slow
def test_of_1000_equal_models_at_most_5_percent_are_promoted() -> None:
    benchmark = Path(__file__).parents[1] / "benchmarks" / "promotion.py"
    simulate = runpy.run_path(str(benchmark))["simulate"]
    equal = simulate(3925, 1000, error=0.4, alone=0.08, improvement=0.0, seed=1)
    assert equal["promoted"] <= 0.05
    assert equal["lower_error"] > 0.45
    better = simulate(3925, 200, error=0.4, alone=0.08, improvement=0.03, seed=1)
    assert better["promoted"] > 0.95
