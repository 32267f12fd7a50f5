"""ProfileMate: a flight recorder for vLLM."""

__version__ = "0.1.0"
