"""Experiment tracking: a thin layer over MLflow through which only public values pass.

MLflow reads its switches once, when it is first imported, so they are set here, before any module
of this package can import it: a privacy product reports to nobody.
"""

import os

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
