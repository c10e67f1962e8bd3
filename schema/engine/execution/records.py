"""Types whose objects are records, answered as they are: there is no copy of each for its type."""

from typing import Any, Self, cast


class RecordType:
    """The base of such a type, which names the records' class: `class Customer(Node, record=CustomerRow)`.

    A field reads the attribute of its name; one that is not an attribute has a resolver that takes the record as
    `root`.
    """

    def __init_subclass__(cls, *, record: type | None = None, **options: Any) -> None:
        """Have Strawberry take the records, and nothing else, for objects of the type."""
        super().__init_subclass__(**options)
        if record is not None:
            cls.is_type_of = IsRecord(record)  # type: ignore[attr-defined]  # Strawberry looks for it by its name.

    @classmethod
    def of(cls, record: Any) -> Self:
        """Return the record as what it is to the type checker: an object of the type."""
        return cast("Self", record)


class IsRecord:
    """Whether an object is a record of this class, as graphql-core asks for it."""

    def __init__(self, record: type) -> None:
        self.record = record

    def __call__(self, obj: object, _info: object) -> bool:
        """Return whether it is."""
        return type(obj) is self.record
