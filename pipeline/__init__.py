"""Specs, stages, Ray, MLflow, the report and the command line."""
