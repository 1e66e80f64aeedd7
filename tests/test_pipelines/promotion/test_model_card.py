"""The model card of a registered version."""

from factories import evaluate_result

from pipelines.promotion.model_card import Origin, model_card
from pipelines.tracking.registry import ModelInfo

MODEL = ModelInfo("models:/m-1", "run-1", (("n1", "a|b"), ("n2", "red")), "abc", "alexnet/3")


def card(params: dict[str, str], **errors: float | None) -> str:
    origin = Origin(version="alexnet/3", model=MODEL, evaluation_run="run-2", params=params)
    return model_card(origin, evaluate_result(**errors))


def test_a_card_says_what_the_model_is_made_of_and_what_to_expect() -> None:
    text = card({"recipe": "paper", "epochs": "90", "unused": "1"})
    for words in (
        "| model card | alexnet/3 |",
        "2 classes: `a\\|b`, `red`",
        "| recipe | paper, epochs 90 |",
        "| top-1 error | 16.67 % (95 % interval 4.70 to 44.80 %) |",
        "| top-5 error | 0.00 %",
        "12 validation images",
        "Apache 2.0",
        "training run run-1, evaluation run run-2",
        "`alexnet lineage models:/alexnet/3`",
    ):
        assert words in text, text
    assert all(line.startswith("| ") and line.endswith(" |") for line in text.splitlines())


def test_what_is_not_known_is_not_invented() -> None:
    text = card({}, top5_error=None, top5_error_low=None, top5_error_high=None)
    assert "top-5" not in text
    assert "| recipe | unknown |" in text
