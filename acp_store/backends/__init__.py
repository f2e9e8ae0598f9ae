"""Backends: each implements `acp_store.repository.Repository` and knows no other."""
