"""Let a CPU build of torch import the torchvision of the registry, which may have been built against CUDA.

Python imports this file by itself when its folder is on PYTHONPATH. Where torchvision's own library loads, nothing
is changed.
"""

import importlib.abc
import importlib.util
import sys
from pathlib import Path

# What torchvision registers Python kernels for as soon as it is imported.
SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


class DefineSchemas(importlib.abc.MetaPathFinder):
    """Define the missing schemas just before torchvision is first imported; finds no module itself."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            define_missing_schemas()


def define_missing_schemas() -> None:
    import torch

    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None or has_working_library(Path(spec.origin).parent):
        return
    library = torch.library.Library("torchvision", "DEF")
    for schema in SCHEMAS:
        library.define(schema)
    torch._longlive_test_shim = library  # the schemas live as long as this object does


def has_working_library(folder: Path) -> bool:
    import torch

    for library in folder.glob("_C*.so"):
        try:
            torch.ops.load_library(library)
        except OSError:
            return False
        return True
    return False


sys.meta_path.insert(0, DefineSchemas())
