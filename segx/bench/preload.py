"""What the server of torch workers imports once; nothing here may start a thread or touch a device."""

from __future__ import annotations

import segmentation_models_pytorch  # noqa: F401
import torch  # noqa: F401

import segx.bench.worker
import segx.model
import segx.runtimes.pytorch  # noqa: F401
