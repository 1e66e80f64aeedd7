"""The settings of training that change the recipe, and the options that did not exist in 2012."""

from dataclasses import replace
from typing import Any

import pytest

from alexnet.errors import UserError
from alexnet.later_recipes import LATER_RECIPES
from alexnet.recipes import PAPER, RECIPES, SOURCE145, ablate
from alexnet.shards.format import Shard
from alexnet.shards.manifest import Manifest
from alexnet.variants import with_conv6, with_second_phase
from pipelines.settings import TrainSettings
from pipelines.training.recipe import resolve_recipe, with_recipe_numbers
from pipelines.training.state import MAX_ROW_GROUPS, check_row_groups


def test_the_default_settings_do_not_change_a_recipe() -> None:
    for recipe in (RECIPES | LATER_RECIPES).values():
        assert resolve_recipe(TrainSettings.model_validate({"recipe": recipe.name})) == recipe


def test_a_network_of_one_column_needs_one_gpu() -> None:
    settings = TrainSettings(recipe="torchvision")
    assert with_recipe_numbers(settings, resolve_recipe(settings)).gpus_wanted == 1


def test_conv6_has_its_own_schedule_if_it_begins_with_weights() -> None:
    for init_from in (None, "/checkpoint"):
        settings = TrainSettings.model_validate({"conv6": "on", "init_from": init_from})
        expected = with_conv6(SOURCE145, pretrained=init_from is not None)
        assert resolve_recipe(settings) == expected


def test_the_ablations_are_settings() -> None:
    settings = TrainSettings.model_validate(
        {"recipe": "paper", "towers": 1, "normalization": False, "overlapping_pooling": False}
    )
    expected = ablate(PAPER, towers=1, normalization=False, overlapping_pooling=False)
    assert resolve_recipe(settings) == expected


def test_the_second_phase_is_a_setting_of_the_source_alone() -> None:
    settings: dict[str, Any] = {"recipe": "source145", "second_phase": "on"}
    assert resolve_recipe(TrainSettings.model_validate(settings)) == with_second_phase(SOURCE145)
    for other in ({"recipe": "paper"}, {"towers": 1}, {"lr_drops": [3]}, {"conv6": "on"}):
        with pytest.raises(UserError, match="--second-phase on: it is the log of source145"):
            resolve_recipe(TrainSettings.model_validate(settings | other))


def test_the_source_shuffles_once_and_the_setting_wins() -> None:
    assert resolve_recipe(TrainSettings(recipe="source145")).shuffle == "once"
    assert resolve_recipe(TrainSettings(recipe="paper")).shuffle == "every-epoch"
    for value in ("once", "every-epoch"):
        for recipe in RECIPES:
            settings = TrainSettings.model_validate({"recipe": recipe, "shuffle": value})
            resolved = resolve_recipe(settings)
            assert resolved.shuffle == value
            assert with_recipe_numbers(TrainSettings(), resolved).results()["shuffle"] == value


def test_all_rows_are_shuffled_only_if_all_row_groups_can_be_mapped(dataset: Manifest) -> None:
    shards = {"train": (Shard("train/0", 64 * MAX_ROW_GROUPS, 0, ""),), "val": ()}
    most = replace(dataset, shards=shards)
    more = replace(dataset, shards={"train": (*shards["train"], Shard("train/1", 1, 0, ""))})
    for shuffle_rows in ("windows", "all"):
        settings = TrainSettings.model_validate({"shuffle_rows": shuffle_rows})
        check_row_groups(settings, most)
    with pytest.raises(UserError, match=r"60,001 row groups.* give --shuffle-rows windows$"):
        check_row_groups(settings, more)
    check_row_groups(TrainSettings(), more)


def test_modern_options_are_off_by_default() -> None:
    settings = TrainSettings()
    assert (settings.precision, settings.gradient_compression) == ("float32", "none")
    assert (settings.warmup_epochs, settings.ema) == (0, None)
    assert settings.decode_on == "cpu"


def test_a_change_of_a_modern_option_trains_again() -> None:
    names = {"precision", "gradient_compression", "warmup_epochs", "ema", "decode_on"}
    assert names <= TrainSettings().results().keys()
