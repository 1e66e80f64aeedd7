"""The learning rate over the epochs of 2012: when the error stalls (the paper), or at fixed epochs.

The defaults are those of the network 145 (``alexnet/recipes.py``). ``training.optimizer.rates_at``
computes the rates of an epoch.
"""

from dataclasses import dataclass

NEVER = 10**9
"""An epoch that no training reaches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlateauSchedule:
    """Lower the learning rate when the validation error stalls (paper, section 5)."""

    factor: float = 0.1
    """The rate is multiplied by this at each drop."""
    drops: int = 3
    """Number of drops at most."""
    patience: int = 5
    """Epochs without a better validation error before a drop. The paper gives no number, because
    its authors lowered the rate by hand. Five of ninety epochs is our reading of "stopped
    improving"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SecondPhase:
    """The end of 145's log, "pushing learning rate back up": a higher rate once more.

    With it the errors became 40.25 % and 17.99 %, instead of 40.66 % and 18.21 % (ten views).
    """

    first_epoch: int = 92
    """The log does not name it. It is the one after those of the first phase."""
    rate: float = 0.1
    """The rate as a multiple of the schedule's first one."""
    drops: tuple[int, ...] = (107, 124)
    colour_noise_until: int = 124
    """There is colour noise again, up to this epoch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRate:
    """A change of one layer's rates, of weights and biases."""

    layer: str
    first_epoch: int
    """The change is made in this epoch, counted from 1."""
    factor: float
    """The rates are those of the other layers times this. 0: the layer is frozen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSchedule:
    """Lower the learning rate at fixed epochs (145).

    Epochs are counted from 1, as in the log at the end of ``layer-params-145.cfg``: its "epoch 25:
    set epsw to 0.001" was written while the 25th epoch ran, so 24 whole epochs had the first rate.
    The log does not say how far that epoch was. Here the whole epoch has the new rate.
    """

    factor: float = 0.1
    """The rate is multiplied by this at each drop."""
    drops: tuple[int, ...] = (25, 51, 79)
    """The epochs from which on the rate is lower."""
    bias_drops: tuple[int, ...] = ()
    """The epochs from which on the biases' rate is lower. The log at the end of
    ``layer-params-145.cfg`` lowers only ``epsW``, and the file ends with ``epsW=0.00001`` and
    ``epsB=0.02``, the first bias rate, in every layer but the frozen conv1 (``epsB=0.0``)."""
    layer_rates: tuple[LayerRate, ...] = (
        LayerRate(layer="conv1", first_epoch=67, factor=0.1),
        LayerRate(layer="conv1", first_epoch=72, factor=0.0),
    )
    """Of layers with other rates than the rest. conv1 becomes slow, then it is frozen. The log
    names the slow phase of the weights only; two related networks (``layer-params-149.cfg`` and
    ``layer-params-145-half.cfg``) ended in it: conv1's ``epsB`` is 0.002, most others' 0.02. The
    log does not contain the epoch in which conv1's ``epsB`` became 0; we assume that it is the same
    one as for its ``epsW``."""
    colour_noise_until: int = 67
    """From this epoch on, there is no colour noise."""
    second_phase: SecondPhase | None = None
