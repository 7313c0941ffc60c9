"""The library: `import dqexport; dqexport.build(checkpoint, "cpu", Path("bundle"))`."""

from exporter.build import BuildOptions, build
from exporter.decoding import DecodeOptions
from exporter.errors import UserError
from exporter.manifest import Manifest
from exporter.quant_options import QuantOptions
from exporter.verify import verify

__all__ = [
    "BuildOptions",
    "DecodeOptions",
    "Manifest",
    "QuantOptions",
    "UserError",
    "build",
    "verify",
]
