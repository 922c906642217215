"""The attributes' structural causal model. Imports datasets and mechanisms."""

_EXPORTS = {"AttributeSCM": "pgm.scm", "AttributeConfig": "pgm.scm", "parse_do": "pgm.interventions",
            "resolve_do": "pgm.interventions"}

__all__ = ["AttributeConfig", "AttributeSCM", "parse_do", "resolve_do"]


def __getattr__(name: str):
    if name in _EXPORTS:  # on first use: a command that only prints its help need not wait for Pyro
        from importlib import import_module

        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'pgm' has no attribute {name!r}")
