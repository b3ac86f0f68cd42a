"""APEM in the conventions of other libraries. Import each module by its full name.

    from apem_fast.adapters.torchmetrics import Apem   # a torchmetrics.Metric
    from apem_fast.adapters.quantus import Apem        # called as Quantus calls its metrics
    from apem_fast.adapters.captum import apem         # with the arguments of captum.metrics.infidelity

To use explanation methods of Captum, or any function, see `af.explain.from_captum` and `af.explain.from_callable`.
"""
