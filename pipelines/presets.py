"""Named defaults. A preset's values stand between the built-in ones and a ``--config`` file's.

Without a chosen preset, the embedded sample has the preset ``sample`` and all other images have
``none``, so that their numbers are those of the recipe.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

from pipelines.configuration.setting_types import PresetName
from pipelines.settings import StageSettings

S = TypeVar("S", bound=StageSettings)

SAMPLE: dict[str, Any] = {
    "recipe": "source145",
    "epochs": 4,
    "batch_size": 16,
    "learning_rate": 0.002,
    "lr_drops": [3],
    "shuffle": "every-epoch",
    "rows_per_shard": 128,
    "log_steps": 5,
}
"""Handwritten digits, embedded.

Command: ``python pipelines/full_run.py``.
Time: 5 to 6 minutes on 2 CPU cores, of which training takes 4.
Result: 5.0 to 6.9 % top-1 error with ten views (0.3 % top-5); rounding differs by CPU. Three
epochs with a drop after the second take a minute less; three runs that rounded differently ended at
9.4 to 10.8 %.

Also measured: at batch 32 and rate .002, inverted dropout, which scales up in training, raised the
loss to 9 in the first steps and left the first epoch at chance; the dropout of 2012 did not. After
two epochs, batch 32 at rate .003 had 26 % error, batch 16 at rate .002 had 14 %. The drop of the
rate reduced the error in the fourth of four epochs from 11.4 to 6.7 % (centre view).
"""

IMAGENETTE: dict[str, Any] = {
    "recipe": "source145",
    "epochs": 60,
    "batch_size": 32,
    "learning_rate": 0.002,
    "shuffle": "every-epoch",
    "rows_per_shard": 512,
}
"""Ten classes of ILSVRC2012 at full size, downloaded when ``--source`` is absent.

Command: ``python pipelines/full_run.py --preset imagenette --workdir imagenette``.
Time and result: not measured at this length. Ten classes of ILSVRC2012 at 224 pixels, two epochs at
batch 16 and this rate, a drop after the first: 48.7 and 48.1 % top-1 error (centre view, two
seeds), 11 minutes on 2 CPU cores; four epochs, a drop after the third: 34.8 %, 25 minutes. The rate
is the sample's, since .01 with few classes diverges.
"""

ILSVRC2012: dict[str, Any] = {
    "recipe": "source145",
    "rows_per_shard": 1024,
    "log_steps": 10,
    "log_seconds": 5.0,
}
"""All of ILSVRC2012; everything else is the recipe's.

Command: ``python pipelines/full_run.py --preset ilsvrc2012 --source FOLDER --workdir FOLDER
--num-workers N --device cuda``.
Time: not measured; no GPUs were at hand.
Result to expect on the validation images: with ten views 40.7 % top-1 and 18.2 % top-5 error, from
the authors' own log of ``source145``; with the centre view, which the curves of a training show,
about 42.6 and 19.7 % (``alexnet/recipes.py``).
"""

PRESETS: dict[str, Mapping[str, Any]] = {
    "none": {},
    "sample": SAMPLE,
    "imagenette": IMAGENETTE,
    "ilsvrc2012": ILSVRC2012,
}


def resolve_preset(settings: S, *, of_sample: bool) -> S:
    """The settings with the values of the data set's preset, unless a preset was chosen.

    Args:
        settings: those that are given keep their values.
        of_sample: whether the images are the embedded sample's.
    """
    if settings.preset:
        return settings
    name: PresetName = "sample" if of_sample else "none"
    fields = type(settings).model_fields
    values = {key: value for key, value in PRESETS[name].items() if key in fields}
    chosen = {"workdir": settings.workdir} | settings.given | {"preset": name}
    return type(settings).model_validate(values | chosen).with_origins(settings.origins)


def describe(settings: StageSettings, values: Mapping[str, Any], default: str = "default") -> str:
    """``epochs 90 (recipe paper), batch size 16 (--batch-size)``: values, and what set them.

    Args:
        settings: of the stage, with their preset's values.
        values: what the stage uses, by the name of the setting.
        default: what sets a value whose setting is None.
    """
    preset = PRESETS[settings.preset or "none"]

    def origin(name: str) -> str:
        value = getattr(settings, name)
        if name in settings.origins:
            return settings.origins[name]
        if value is None:
            return default
        if preset.get(name) == value:
            return f"preset {settings.preset}"
        return "given" if name in settings.given else "default"

    return ", ".join(
        f"{name.replace('_', ' ')} {value} ({origin(name)})" for name, value in values.items()
    )
