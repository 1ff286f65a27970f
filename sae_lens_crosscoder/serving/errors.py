"""Requests that are refused, as an answer in JSON that names the value and the limit."""

from typing import Any


class RequestError(ValueError):
    """A request that cannot be carried out.

    Attributes:
        status: the HTTP status.
        field: the part of the request, such as `edits[0].latents[2]`; None for the request as a whole.
        value: the value that was refused, shortened.
        limit: what is allowed there; None where it is not a number or a list of values.
    """

    def __init__(
        self, status: int, message: str, field: str | None = None, value: Any = None, limit: Any = None
    ) -> None:
        super().__init__(message)
        self.status, self.field, self.limit = status, field, limit
        self.value = f"{value:.77}..." if isinstance(value, str) and len(value) > 80 else value

    def as_json(self) -> dict[str, Any]:
        """The body of the answer."""
        error = {"message": str(self), "field": self.field, "value": self.value, "limit": self.limit}
        return {"error": error}
