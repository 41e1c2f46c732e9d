"""Train image generators on Ray: exact resume, honest scores, MLflow registry."""

__version__ = "0.1.0"
