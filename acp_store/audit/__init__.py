"""Proof that nothing was changed: ``acp_store.audit.verify(repository)`` and its like, as ``acp-store audit`` has them.

The digests alone show what was changed by somebody who did not compute them anew. A `checkpoint`, signed
and kept elsewhere, shows that too, and a run that was removed whole. A `bundle` is all of one run in one
file that `verify_bundle` verifies without a database.
"""

from acp_store.audit.bundles import Bundle, BundleReport, Signature, bundle, verify_bundle
from acp_store.audit.keys import KEY_VARIABLE, Key
from acp_store.audit.stores import Summary, checkpoint, verify

__all__ = [
    "KEY_VARIABLE",
    "Bundle",
    "BundleReport",
    "Key",
    "Signature",
    "Summary",
    "bundle",
    "checkpoint",
    "verify",
    "verify_bundle",
]
