from __future__ import annotations

from pathlib import Path

import pytest

from segx.errors import RuntimeUnavailable
from segx.web import decoder_files, engine_files, static_files


@pytest.fixture(scope="session")
def page_files() -> dict[str, Path]:
    """The files of the pages, as they are served."""
    try:
        return {**static_files(), **decoder_files(), **engine_files()}
    except RuntimeUnavailable as error:
        pytest.skip(f"{error.message}: {error.hint}")
