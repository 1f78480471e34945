"""How far a job is, and what it did in the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from segx.predict.stages import StageTimes


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How far a job is.

    Attributes:
        done: images with a mask.
        failed: images without one.
        seconds: since the engine was ready; 0 before.
    """

    done: int
    failed: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class PipelineReport:
    """What a job did.

    Attributes:
        images: how many got their mask.
        failed: how many did not.
        first_failure: name and reason of the first of those; empty where there is none.
        seconds: from the start to the last mask, the loading of the model included.
        ready_s: of those, until the engine was ready.
        first_mask_s: of those, until the first mask was written; None where there is none.
        stages: where the time went.
        facts: what is in force in the engine; see ``Runtime.facts``.
        restarts: how often its process had to be started again.
        loaders: threads that read, decoded and preprocessed, at the end.
        writers: threads that postprocessed and encoded, at the end.
    """

    images: int
    failed: int
    first_failure: str
    seconds: float
    ready_s: float
    first_mask_s: float | None
    stages: StageTimes
    facts: Mapping[str, str]
    restarts: int
    loaders: int
    writers: int

    @property
    def images_per_s(self) -> float:
        """Throughput once the engine was ready."""
        return self.images / max(self.seconds - self.ready_s, 1e-9)
