"""The cap on optimizer steps that are skipped because loss or gradient was not finite."""

from lwz_ray.failures import BudgetExceededError
from lwz_ray.records import StepResult


class SkippedSteps:
    """Counts skipped steps in a row; any step that is taken starts the count anew."""

    def __init__(self, cap: int, look_at: str) -> None:
        """look_at: what the error sends its reader to."""
        self._cap, self._look_at = cap, look_at
        self._in_a_row = 0

    def count(self, result: StepResult) -> None:
        """Take a training step's result into the count."""
        self._in_a_row = 0 if result.optimizer_steps else self._in_a_row + result.skipped

    @property
    def exceeded(self) -> bool:
        """Tell whether `cap` steps in a row were skipped."""
        return self._in_a_row >= self._cap

    def check(self) -> None:
        """Raise BudgetExceededError where `exceeded`."""
        if self.exceeded:
            raise BudgetExceededError(
                f"{self._in_a_row} optimizer steps in a row had a loss or gradient that was not finite "
                f"(failures.max_consecutive_skipped_steps={self._cap}); lower optimizer.lr or look at {self._look_at}"
            )
