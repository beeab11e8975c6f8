"""Decoding bodies into the consumer's own types (``type=``): pydantic models, and whatever msgspec converts to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from meshmsg.errors import ConfigurationError, MissingExtra


def make_converter(wanted: Any, label: str) -> Callable[[Any], Any]:
    """Returns a function from a decoded body to the wanted type; it raises ValueError for one that does not fit.

    ``label`` names the consumer in errors. Takes dataclasses, ``msgspec.Struct`` and every other type that msgspec
    converts to, and pydantic models.
    Raises ``MissingExtra`` when the library for it is not installed, ``ConfigurationError`` for what is no type.

    >>> make_converter(dict[str, int], "pull('counts')")({"a": 1})
    {'a': 1}
    """
    where = label.removesuffix(")")
    validate = getattr(wanted, "model_validate", None)
    if validate is not None:
        return validate  # type: ignore[no-any-return]  # pydantic's classmethod; pydantic is not imported here
    try:
        import msgspec
    except ImportError:
        raise MissingExtra(
            f'{where}, type=...) needs msgspec: pip install "meshmsg[typed]" '
            '(or pydantic models: pip install "meshmsg[pydantic]")'
        ) from None
    try:
        msgspec.json.schema(wanted)  # looks at the type without a value of it
    except TypeError as error:
        raise ConfigurationError(f"{where}, type={wanted!r}): no type to decode into ({error})") from None

    def convert(body: Any) -> Any:
        return msgspec.convert(body, wanted)

    return convert
