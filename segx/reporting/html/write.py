"""The page on disk, with the pictures that lie beside the results."""

from __future__ import annotations

import logging
from pathlib import Path

from segx.analysis.decision import Constraints
from segx.errors import ResultsError
from segx.reporting.html.page import render
from segx.results.pictures import ParityPicture, load_pictures
from segx.results.types import Results
from segx.system.files import write_text

logger = logging.getLogger(__name__)

NAME = "report.html"


def write_report(results: Results, folder: Path, output: Path, *, constraints: Constraints | None = None) -> None:
    """Write the page; damaged pictures are a warning, since the results are whole without them.

    Args:
        results: of a bench.
        folder: that the results are in.
        output: file to write.
        constraints: that the choice has to meet; None for none.

    Raises:
        OutputError: it cannot be written.
    """
    write_text(output, render(results, constraints=constraints, pictures=_pictures(folder)))


def _pictures(folder: Path) -> tuple[ParityPicture, ...]:
    try:
        return load_pictures(folder)
    except ResultsError as error:
        logger.warning("no pictures in the report: %s; %s", error.message, error.hint)
        return ()
