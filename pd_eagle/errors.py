"""What can go wrong, as one tree.

Every error carries an HTTP status, a stable code and whether trying again can help. Errors cross
the worker's socket as (code, message): `from_code` brings them back. It knows nothing of
SGLang.

PdEagleError                    500 internal_error
├── SettingsError               500 settings_error         a setting is wrong; nothing was started
│                                                          (a ValueError too, as InvalidRequest is)
├── PlanRefused                 500 plan_refused           no split of these devices can serve this
├── StartFailed                 500 start_failed           a worker could not start
├── InvalidRequest              400 invalid_request_error  the client's mistake
│   └── ContextLengthExceeded   400 context_length_exceeded
├── ModelNotFound               404 model_not_found
├── NotFound                    404 not_found              what was to be kept is not, or no longer
├── EngineError                 500 engine_error           the engine refused or failed this request
│   └── EngineCrashed           500 engine_crashed         the request crashes the engine it is in
├── WorkerDied                  503 worker_died            the engine's process is gone; retry
├── TransferFailed              503 transfer_failed        the KV did not arrive; retry
├── Overloaded                  503 overloaded             too much work; retry later
├── TooManyRequests             429 rate_limit_exceeded    too much work of one client; retry later
├── NotServing                  503 not_serving            starting, draining or failed
├── NotSupported                501 not_supported          SGLang has it, several engines cannot
└── DeadlineExceeded            504 deadline_exceeded      the request's own time is up
"""

from __future__ import annotations

from typing import Any, ClassVar


def openai_error(message: str, kind: str, code: str, param: str | None = None) -> dict[str, Any]:
    """Return an error in OpenAI's shape."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


class PdEagleError(Exception):
    """Root of everything this package raises on purpose."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    retryable: ClassVar[bool] = False

    param: ClassVar[str | None] = None

    @property
    def message(self) -> str:
        return str(self)

    def as_openai(self) -> dict[str, Any]:
        """Return the error as the body of an OpenAI response."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return openai_error(self.message, kind, self.code, self.param)


class SettingsError(PdEagleError, ValueError):
    """One or more settings are wrong; the message has a line for each."""

    code = "settings_error"


class PlanRefused(PdEagleError):
    """No split of these devices can serve this model with these settings."""

    code = "plan_refused"


class StartFailed(PdEagleError):
    """A worker could not start; the message carries the engine's own last words."""

    code = "start_failed"


class InvalidRequest(PdEagleError, ValueError):
    """The request itself is wrong and will be wrong again; a `ValueError`, as SGLang raises it."""

    status = 400
    code = "invalid_request_error"


class ContextLengthExceeded(InvalidRequest):
    """Prompt and answer do not fit the model's context or the engine's KV pool."""

    code = "context_length_exceeded"


class ModelNotFound(PdEagleError):
    """The request names a model that is not served here."""

    status = 404
    code = "model_not_found"
    param = "model"


class NotFound(PdEagleError):
    """The request names something that is not kept here, or no longer."""

    status = 404
    code = "not_found"


class EngineError(PdEagleError):
    """The engine refused or failed this one request; it still lives."""

    code = "engine_error"


class EngineCrashed(EngineError):
    """This request crashed an engine when nothing else was in it; it is not tried again."""

    code = "engine_crashed"


class WorkerDied(PdEagleError):
    """The engine that served the request is gone."""

    status = 503
    code = "worker_died"
    retryable = True


class TransferFailed(PdEagleError):
    """The KV cache did not arrive from prefill to decode."""

    status = 503
    code = "transfer_failed"
    retryable = True


class Overloaded(PdEagleError):
    """More work is queued than the settings allow."""

    status = 503
    code = "overloaded"
    retryable = True


class TooManyRequests(PdEagleError):
    """One client has more requests open than the settings allow."""

    status = 429
    code = "rate_limit_exceeded"
    retryable = True


class NotServing(PdEagleError):
    """The service is starting, draining or has failed."""

    status = 503
    code = "not_serving"
    retryable = True


class NotSupported(PdEagleError, NotImplementedError):
    """What SGLang offers for one engine, and this package does not; the message says why."""

    status = 501
    code = "not_supported"


class DeadlineExceeded(PdEagleError):
    """The request did not end within its own deadline."""

    status = 504
    code = "deadline_exceeded"


def _tree(root: type[PdEagleError]) -> dict[str, type[PdEagleError]]:
    found = {root.code: root}
    for child in root.__subclasses__():
        found |= _tree(child)
    return found


def from_code(code: str, message: str) -> PdEagleError:
    """Return the error that `code` names; an unknown code becomes the root with the code kept."""
    known = _tree(PdEagleError).get(code)
    return known(message) if known else PdEagleError(f"{code}: {message}")
