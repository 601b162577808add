"""distrec: train recommendation models whose embedding tables are too large for one device."""

__version__ = "0.1.0"
