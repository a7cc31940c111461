"""Written by `adaptis run`: has the stages of torch.distributed.pipelining, or the steps of optimizers, measured in the
Pythons that it starts, where the package `adaptis` is installed. Then it does as if it were not here."""

import importlib.machinery
import importlib.util
import os
import sys

_here = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [path for path in sys.path if os.path.abspath(path or ".") != _here]
try:
    # Not by its name, which would import all of it, and torch.
    _package = importlib.util.find_spec("adaptis")
    # A mere folder of that name is no package of ours.
    for _folder in (_package.submodule_search_locations or []) if _package and _package.origin else []:
        _spec = importlib.util.spec_from_file_location("_adaptis_auto", os.path.join(_folder, "auto.py"))
        _auto = importlib.util.module_from_spec(_spec)
        _spec.loader.exec_module(_auto)
        _auto.install()
except Exception as _error:
    print(f"adaptis: nothing is measured: {type(_error).__name__}: {_error}", file=sys.stderr)

# One that would have been found without this one.
_spec = importlib.machinery.PathFinder.find_spec("sitecustomize", sys.path)
if _spec is not None and _spec.loader is not None:
    _module = importlib.util.module_from_spec(_spec)
    sys.modules["sitecustomize"] = _module
    _spec.loader.exec_module(_module)
