"""Measurements: what distillation gains (``detection.py``) and what it costs (``overhead.py``)."""
