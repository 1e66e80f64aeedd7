"""The steps between two points of the training curves."""

from dataclasses import dataclass, field

from alexnet.training.device_queue import DeviceTime
from alexnet.training.loop import StepSums


@dataclass(slots=True)
class Window:
    """The steps between two points of the curves."""

    started: DeviceTime
    sums: StepSums = field(default_factory=StepSums)
    ended: DeviceTime | None = None
    step: int = 0
    """Number of the last step."""
    offset: int = 0
    """Rows of the epoch up to it."""

    def seconds(self) -> float:
        """Waits for the device."""
        assert self.ended
        return self.ended.seconds_since(self.started)
