"""The recipe that a training follows: the named one, with the settings' numbers in place."""

from dataclasses import replace

from alexnet.errors import UserError
from alexnet.later_recipes import LATER_RECIPES
from alexnet.recipes import RECIPES, SOURCE145, Recipe, ablate
from alexnet.training.optimizer import with_drops
from alexnet.variants import with_conv6, with_second_phase
from pipelines.settings import TrainSettings


def resolve_recipe(settings: TrainSettings) -> Recipe:
    """The recipe with the settings' ablations and numbers.

    Raises:
        UserError: the settings exclude each other.
    """
    named = (RECIPES | LATER_RECIPES)[settings.recipe]
    recipe = ablate(
        named,
        normalization=settings.normalization,
        overlapping_pooling=settings.overlapping_pooling,
        towers=min(settings.towers, named.towers),
    )
    drops = settings.lr_drops
    if settings.second_phase:
        if recipe != SOURCE145 or drops or settings.conv6:
            raise UserError(
                "--second-phase on: it is the log of source145 itself; give it without --lr-drops, "
                "--conv6, ablations and other recipes"
            )
        recipe = with_second_phase(recipe)
    if settings.conv6:
        recipe = with_conv6(recipe, pretrained=settings.init_from is not None)
    return replace(
        recipe,
        schedule=recipe.schedule if drops is None else with_drops(recipe.schedule, drops),
        learning_rate=settings.learning_rate or recipe.learning_rate,
        batch_size=settings.batch_size or recipe.batch_size,
        shuffle=settings.shuffle or recipe.shuffle,
        epochs=settings.epochs or recipe.epochs,
    )


def with_recipe_numbers(settings: TrainSettings, recipe: Recipe) -> TrainSettings:
    """The settings with the recipe's numbers filled in, so that the run records them."""
    names = ("epochs", "batch_size", "learning_rate", "shuffle", "towers")
    return settings.model_copy(update={name: getattr(recipe, name) for name in names})
