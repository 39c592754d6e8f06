"""Linear maps as estimators see them: blocks, probes, products that are counted."""
