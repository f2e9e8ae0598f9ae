"""Repositories around a repository; each knows only the contract."""
