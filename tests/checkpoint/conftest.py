"""What several tests of checkpoints watch."""

import os

import pytest


@pytest.fixture
def synced(monkeypatch):
    """The inodes of everything that is brought to the disk."""
    inodes = set()
    monkeypatch.setattr(os, "fsync", lambda descriptor: inodes.add(os.fstat(descriptor).st_ino))
    return inodes
