"""The version stands below everything that prints it."""

from __future__ import annotations

VERSION = "0.1.0"
