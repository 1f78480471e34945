"""What libraries say is dropped only as long as it is asked for."""

from __future__ import annotations

import logging

import pytest

from segx.system.silence import quiet


def test_what_libraries_log_is_dropped_errors_too(caplog: pytest.LogCaptureFixture) -> None:
    library = logging.getLogger("library")
    with quiet():
        library.warning("slow")
        library.error("raised too")
    library.error("later")
    assert caplog.messages == ["later"]
