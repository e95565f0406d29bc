"""bco-ray: train a language model on its own thumbs-up / thumbs-down, on your own Ray cluster, and serve the result.

feedback log -> records -> tokens -> weights -> batches -> loss -> checkpoint -> registry -> served model
-> feedback log
"""

__version__ = "0.1.0"
