"""What a plugin registry makes of a library: `registry_probe.py MODULE LIBRARY` prints JSON.

A process of its own, since a registry that does not know a library's layout ends the process.
"""

import importlib
import json
import sys

import numpy as np


def main(module: str, library: str) -> None:
    """Load the library and make a plugin of DqxLinearW4A8 in both phases; then a wrong one."""
    trt = importlib.import_module(module)
    registry = trt.get_plugin_registry()
    assert registry.load_library(library) is not None
    creators = [c.name for c in registry.all_creators if c.plugin_namespace == "dqexport"]
    creator = registry.get_creator("DqxLinearW4A8", "1", "dqexport")

    def made(step: float, phase: object) -> bool:
        kind = trt.PluginFieldType
        values = [
            trt.PluginField("group", np.array([64], np.int32), kind.INT32),
            trt.PluginField("activation_group", np.array([64], np.int32), kind.INT32),
            trt.PluginField("step", np.array([step], np.float32), kind.FLOAT32),
        ]
        fields = trt.PluginFieldCollection(values)
        return creator.create_plugin("node", fields, phase) is not None

    phases = (trt.TensorRTPhase.BUILD, trt.TensorRTPhase.RUNTIME)
    found = {"creators": creators, "made": [made(0.5, p) for p in phases]}
    print(json.dumps({**found, "wrong": [made(-1.0, p) for p in phases]}))


if __name__ == "__main__":
    main(*sys.argv[1:])
