"""When a point of the training curves is due.

All workers have to stop at the same steps, because they add their sums up there. So the step of the
next point is determined beforehand, from a speed on which the workers agree at each point.
"""

import math


def next_point(step: int, *, log_steps: int, log_seconds: float, seconds_per_step: float) -> int:
    """The step of the next point after ``step``: a multiple of ``log_steps``.

    Args:
        step: the present one.
        log_steps: updates between two points at least.
        log_seconds: seconds between two points at least, as far as the speed stays the same.
        seconds_per_step: the speed; 0 if it is not known yet.
    """
    wanted = math.ceil(log_seconds / seconds_per_step) if seconds_per_step else 1
    return -(-(step + max(1, wanted)) // log_steps) * log_steps
