"""`python -m apem_fast.siamese`, the same as `apem-fast siamese`."""

from apem_fast.siamese.commands import app

app(prog_name="apem-fast siamese")
