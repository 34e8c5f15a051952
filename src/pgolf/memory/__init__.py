"""Memory: what followed each context so far, mixed with the model's predictions; see docs/memory.md.

From the bottom up: ``compiled``, ``tables`` (log odds), ``tree``, ``counts``, ``contexts``; ``mixing`` and
``coding``, or ``linear``; ``memory`` has what others use. Beside it ``ngrams`` and ``pruning`` (counts that
are stored), and ``stored`` (the section of an artifact).
"""
