from __future__ import annotations

import subprocess
import sys


def test_inputs_and_outputs_import_no_engine() -> None:
    code = (
        "import sys, segx.predict.sources, segx.predict.outputs, segx.predict.manifest\n"
        "heavy = {'torch', 'torchvision', 'onnx', 'onnxruntime', 'openvino', 'rich', 'scipy'}\n"
        "print(sorted(heavy.intersection(name.partition('.')[0] for name in sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
