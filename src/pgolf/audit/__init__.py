"""The auditor: tests by experiment whether a score is valid. Start in ``audit.py``; docs/audit.md explains."""
