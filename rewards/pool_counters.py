"""What the reward pool counts: since it began, and since a reader last looked."""

from dataclasses import dataclass

from rewards.pairs import ClassifierScores


@dataclass(slots=True)
class PoolCounts:
    """Sums over some time."""

    texts: int = 0
    batches: int = 0
    windowed: int = 0
    coverage: float = 0.0
    """Sum over texts."""
    retries: int = 0
    lost: int = 0


class PoolCounters:
    """Counts every event twice: in `total`, and in what the next `take` returns."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self.total = PoolCounts()
        self._recent = PoolCounts()

    def count(self, answer: ClassifierScores) -> None:
        """Count a batch that was scored."""
        for counts in (self.total, self._recent):
            counts.batches += 1
            counts.texts += len(answer.values)
            counts.windowed += answer.num_windowed
            counts.coverage += sum(answer.coverage)

    def retry(self) -> None:
        """Count a text that is tried again."""
        for counts in (self.total, self._recent):
            counts.retries += 1

    def lost(self) -> None:
        """Count a replica that was given up."""
        for counts in (self.total, self._recent):
            counts.lost += 1

    def take(self) -> dict[str, float]:
        """Return `pool/what` since the previous call; means are left out where nothing was scored."""
        recent, self._recent = self._recent, PoolCounts()
        numbers = {
            "pool/texts": float(recent.texts),
            "pool/batches": float(recent.batches),
            "pool/windowed": float(recent.windowed),
            "pool/retries": float(recent.retries),
            "pool/lost": float(recent.lost),
        }
        if recent.batches:
            numbers["pool/batch_fill"] = recent.texts / (recent.batches * self._batch_size)
            numbers["pool/coverage"] = recent.coverage / recent.texts
        return numbers
