"""Whether a model version becomes champion: the rule, and the table that shows why.

On the same validation images, a version replaces the champion if its ten-view top-1 error is lower,
by ``--margin`` percentage points at least, and the exact test of McNemar finds the difference
significant: p < ``--significance``. Where there is no champion yet, a version becomes champion
unless it is no better than chance (``alexnet.significance.chance_p_value``).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from alexnet.predictions import Predictions
from alexnet.significance import PairedCounts, chance_p_value, p_in_words
from pipelines.settings import PromoteSettings
from pipelines.tracking.registry import ROLLED_BACK_TAG, Version


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Whether a version becomes champion, and why."""

    wins: bool
    reason: str
    compared_with: str | None = None
    """The champion's version."""
    counts: PairedCounts | None = None
    """The champion is the first model. None if the two were not compared."""
    chance: float | None = None
    """p-value of the test against chance, if there is no champion."""
    unknown: bool = False
    """Whether the champion's predictions for these images are missing."""

    def table(self, version: str) -> Mapping[str, str]:
        """The decision in words and numbers, for people."""
        rows = {"version": version, "becomes champion": "yes" if self.wins else "no"}
        if self.compared_with:
            rows["champion until now"] = f"version {self.compared_with}"
        if self.chance is not None:
            rows["p of no more than chance"] = p_in_words(self.chance).removeprefix("= ")
        if counts := self.counts:
            low, high = counts.interval
            rows |= {
                "images": f"{counts.images:,}",
                "both right": f"{counts.both:,}",
                f"only version {version} right": f"{counts.only_second:,}",
                f"only version {self.compared_with} right": f"{counts.only_first:,}",
                "both wrong": f"{counts.neither:,}",
                "error is lower by": f"{100 * counts.difference:.2f} percentage points",
                "95 % interval": f"{100 * low:.2f} to {100 * high:.2f} percentage points",
                "McNemar's p": p_in_words(counts.p_value).removeprefix("= "),
            }
        return rows | {"reason": self.reason}

    def markdown(self, version: str) -> str:
        """The table in Markdown, for the version's description."""
        rows = [f"| {name} | {value} |" for name, value in self.table(version).items()]
        return "\n".join(["| decision | |", "| --- | --- |", *rows])

    def not_set(self, why: str) -> "Decision":
        """The same, but the alias points elsewhere."""
        return replace(self, wins=False, reason=f"{self.reason}; {why}")


def decide(
    settings: PromoteSettings,
    version: Version,
    predicted: Predictions,
    champion: Version | None,
    of_champion: Predictions | None,
    *,
    evaluation: str,
) -> Decision:
    """Decide about a version.

    Args:
        settings: the rule.
        version: the registered version that may become champion.
        predicted: its predictions.
        champion: the present champion.
        of_champion: its predictions for the same validation images, if there are any.
        evaluation: stage key of the version's evaluation.
    """
    before = champion.version if champion else None
    if before == version.version:
        return Decision(wins=True, reason="it was champion already", compared_with=before)
    counts = (
        PairedCounts.of(of_champion.correct, predicted.correct)
        if of_champion and of_champion.keys == predicted.keys
        else None
    )
    compared = Decision(wins=False, reason="", compared_with=before, counts=counts)
    if settings.champion != "better":
        always = settings.champion == "always"
        return replace(compared, wins=always, reason=f"--champion {settings.champion}")
    if ROLLED_BACK_TAG in version.tags:
        return replace(
            compared,
            reason=f"it was rolled back ({version.tags[ROLLED_BACK_TAG]}); --champion always makes "
            "it champion again",
        )
    if champion is None:
        return _first(settings, predicted)
    if counts is None:
        uri = f"models:/{settings.registered_model}/{before}"
        return replace(
            compared,
            unknown=True,
            reason=f"version {before} has no predictions for these validation images; run "
            f"pipelines/evaluate.py --model {uri}, then pipelines/promote.py --evaluation "
            f"{evaluation}; or give --champion always",
        )
    return _compare(settings, compared, counts)


def _first(settings: PromoteSettings, predicted: Predictions) -> Decision:
    images, right = len(predicted.keys), int(predicted.correct.sum())
    chance = chance_p_value(right, predicted.labels)
    error = f"{100 * (images - right) / images:.2f} % top-1 error on {images:,} images"
    if chance < settings.significance:
        return Decision(wins=True, reason=f"no version was champion before; {error}", chance=chance)
    reason = f"no better than chance: {error}, p {p_in_words(chance)}"
    return Decision(wins=False, reason=f"{reason}; --champion always overrides this", chance=chance)


def _compare(settings: PromoteSettings, compared: Decision, counts: PairedCounts) -> Decision:
    lower = 100 * counts.difference
    words = f"{abs(lower):.2f} percentage points {'lower' if lower >= 0 else 'higher'}"
    against = (
        f"top-1 error {words} than that of version {compared.compared_with} on {counts.images:,} "
        f"images (right where the other is wrong: {counts.only_second:,} against "
        f"{counts.only_first:,}; p {p_in_words(counts.p_value)})"
    )
    if lower <= 0:
        return replace(compared, reason=f"not better: {against}")
    # The difference is a fraction of whole numbers: rounding must not decide about equality.
    if lower < settings.margin - 1e-9:
        return replace(compared, reason=f"less than --margin {settings.margin:g}: {against}")
    if counts.p_value >= settings.significance:
        return replace(
            compared,
            reason=f"not significant at --significance {settings.significance:g}: {against}",
        )
    return replace(compared, wins=True, reason=against)
