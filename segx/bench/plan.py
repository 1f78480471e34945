"""What a bench measures: variants and groups of cells, and the data exchanged with the workers that run them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from segx.bench.inputs import Inputs
from segx.errors import RuntimeUnavailable
from segx.model.spec import ModelSpec
from segx.results.types import BenchOptions, HostMemory
from segx.runtimes import RuntimeOptions, Variant, runtime_info

if TYPE_CHECKING:
    from segx.predict.sources import Item

# Of so many passes, or calls that take as long, a single disturbed one does not move the median.
MIN_PASSES = 3


@dataclass(frozen=True)
class Group:
    """The cells measured side by side: those of one batch size, with the pipeline scope apart from the others."""

    batch_size: int
    variants: tuple[Variant, ...]


def variants_of(options: BenchOptions) -> tuple[Variant, ...]:
    """Return every runtime in each requested precision and scope.

    If several precisions or scopes are requested, each runtime gets those it supports. A single one that it does not
    support, or one that was requested with the runtime, gives a row that says so (see ``unsupported``).
    """
    return tuple(
        Variant(name, precision, scope)
        for name in options.runtimes
        for precision in options.precisions
        for scope in options.scopes
        if not options.variants or f"{name}:{precision}" in options.variants
        if not (len(options.scopes) > 1 and scope not in runtime_info(name).scopes)
        if options.variants or len(options.precisions) == 1 or precision in runtime_info(name).precisions
    )


def groups_of(options: BenchOptions) -> tuple[Group, ...]:
    """Return the groups in the order in which they are measured."""
    variants = variants_of(options)
    scopes = sorted({variant.scope == "pipeline" for variant in variants})
    return tuple(
        Group(
            size,
            tuple(
                variant
                for variant in variants
                if (variant.scope == "pipeline") == pipeline and runtime_info(variant.runtime).least_batch <= size
            ),
        )
        for size, pipeline in itertools.product(options.batch_sizes, scopes)
    )


def unsupported(variant: Variant, batch_sizes: Sequence[int]) -> RuntimeUnavailable | None:
    """Return why no machine can run a variant at any of these batch sizes; None if one can."""
    info = runtime_info(variant.runtime)
    if variant.precision not in info.precisions:
        return RuntimeUnavailable(
            f"{info.name} does not compute in {variant.precision}", hint=f"use {', '.join(info.precisions)}"
        )
    if variant.scope not in info.scopes:
        return RuntimeUnavailable(
            f"{info.name} is not measured in scope {variant.scope}: segx gives it its inputs and outputs on the host",
            hint=f"use scope {' or '.join(info.scopes)}",
        )
    if max(batch_sizes) < info.least_batch:
        return RuntimeUnavailable(
            f"{info.name} runs several images at a time", hint=f"use a batch size of {info.least_batch} or more"
        )
    return None


@dataclass(frozen=True, kw_only=True)
class CellTask:
    """The work of one worker.

    Attributes:
        model: file that the runtime loads.
        outputs: file for the outputs of the timed calls; in the pipeline scope the folder for the masks of a pass.
        memory_limit_bytes: private memory that a worker on the CPU may take; None for most of what is free.
        items: the images as files, in the same order; only in the pipeline scope.
        fills_batches: see ``EngineTask``.
    """

    runtime: str
    model: Path
    spec: ModelSpec
    options: RuntimeOptions
    batch_size: int
    inputs: Inputs
    outputs: Path
    memory_limit_bytes: int | None
    items: tuple[Item, ...] = ()
    fills_batches: bool = False

    @property
    def variant(self) -> Variant:
        """Return the variant that is measured."""
        return Variant(self.runtime, self.options.precision, self.options.scope)

    @property
    def images_per_run(self) -> int:
        """Return the number of images of one timed run: a batch, or in the pipeline scope all images."""
        return len(self.items) or self.batch_size


@dataclass(frozen=True)
class Loaded:
    """What loading took; None in the pipeline scope, which does not tell the parts apart.

    Attributes:
        import_s: importing the engine; for a worker forked with it, what the import took in the fork server.
        load_s: reading the model, building the engine and one inference that proves it.
        first_s: the first inference at this batch size.
        facts: settings in force; see ``Runtime.facts``.
    """

    import_s: float | None
    load_s: float | None
    first_s: float | None
    facts: Mapping[str, str]


@dataclass(frozen=True)
class Finished:
    """What a worker reports at the end.

    Attributes:
        memory: None where the system does not report it.
        device_memory: highest bytes by the framework's own counter, and its name; None if it has none.
        stages: seconds per image in each stage of the pipeline scope; empty in the others.
    """

    memory: HostMemory | None
    device_memory: tuple[int, str] | None
    stages: Mapping[str, float] = field(default_factory=dict)
