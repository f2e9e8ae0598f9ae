"""The revisions: hand-reviewed, frozen once released, importing nothing of acp_store."""
