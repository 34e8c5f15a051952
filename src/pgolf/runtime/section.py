"""What every section of a recipe is."""

from __future__ import annotations

import pydantic


class Section(pydantic.BaseModel):
    """A frozen part of a recipe; keys it does not know are errors."""

    model_config = pydantic.ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )
