"""Decodes text with the bundle that this file lies in: `python decode.py --help`.

Needs Python 3.10, numpy and onnxruntime; tokenizers and jinja2 for text. The loop is in runtime/.
"""

import sys
from importlib import import_module
from pathlib import Path

if __name__ == "__main__":
    bundle = Path(__file__).resolve().parent
    sys.path.insert(0, str(bundle))
    sys.exit(import_module("runtime.command").main(bundle, sys.argv[1:]))
