"""What every law and every host must keep to, as checks that anybody can run on their own. Extra: `testing`.

check_law(my_law)                       # a function with the signature of `laws.Law`, or the name of an entry

class TestMyHost(HostContract):         # pytest finds the tests; `lrs` is all that they need
    def lrs(self, settings, kls, resume_after=None): ...
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adaptive_warmup.testing.hosts import HostContract
    from adaptive_warmup.testing.laws import PROPERTIES, check_law

__all__ = ["PROPERTIES", "HostContract", "check_law"]

# Handed out when asked for: a host is checked without hypothesis.
_HOMES = {"PROPERTIES": "laws", "HostContract": "hosts", "check_law": "laws"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
