"""APEM behind other libraries' conventions. Nothing is imported until it is asked for by its full name.

    from apem_fast.adapters.torchmetrics import Apem   # a torchmetrics.Metric
    from apem_fast.adapters.quantus import Apem        # called as Quantus calls its metrics
    from apem_fast.adapters.captum import apem         # signed like captum.metrics.infidelity

Explanation methods come in from Captum, and from anywhere, by `af.explain.from_captum` and `af.explain.from_callable`.
"""
