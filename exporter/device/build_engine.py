"""Builds the engines of the bundle that this file lies in: `python build_engine.py --help`.

Needs Python 3.10 and TensorRT's Python module, nothing else. The program is in runtime/.
"""

import sys
from importlib import import_module
from pathlib import Path

if __name__ == "__main__":
    bundle = Path(__file__).resolve().parent
    sys.path.insert(0, str(bundle))
    sys.exit(import_module("runtime.build_command").main(bundle, sys.argv[1:]))
