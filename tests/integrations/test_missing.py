"""An integration whose SDK is not installed says what to install."""

from __future__ import annotations

import sys

import pytest

from acp_store import MissingExtraError


def test_without_acp_sdk() -> None:
    """Importing it names the extra, and is an ImportError too."""
    with pytest.raises(MissingExtraError, match=r"pip install 'acp-store\[acp-sdk\]'"):
        import acp_store.integrations.acp_sdk  # noqa: F401


def test_without_openai_agents(monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing it names the extra, and is an ImportError too."""
    monkeypatch.setitem(sys.modules, "agents", None)
    monkeypatch.delitem(sys.modules, "acp_store.integrations.openai_agents", raising=False)
    with pytest.raises(MissingExtraError, match=r"pip install 'acp-store\[openai-agents\]'"):
        import acp_store.integrations.openai_agents  # noqa: F401


def test_without_a2a(monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing it names the extra, and is an ImportError too."""
    monkeypatch.setitem(sys.modules, "a2a.server.tasks", None)
    monkeypatch.delitem(sys.modules, "acp_store.integrations.a2a", raising=False)
    with pytest.raises(MissingExtraError, match=r"pip install 'acp-store\[a2a\]'"):
        import acp_store.integrations.a2a  # noqa: F401
