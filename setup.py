"""Build the package as pyproject.toml says, and say if it will lack the engine of the pages."""

import sys
from pathlib import Path

from setuptools import setup

if not (Path(__file__).parent / "segx" / "web" / "node_modules" / "onnxruntime-web").is_dir():
    sys.stderr.write(
        "warning: onnxruntime-web is not in this build: run npm ci --prefix segx/web first, or do without the runtimes "
        "and pages of the browser\n"
    )
setup()
