"""Estimators that grow until their error bar is small enough."""
