"""What a client is told about the errors of engines and versions."""

from __future__ import annotations

from bco_ray.serving.engines.protocol import DeadlineError, EngineDeadError, EngineOverloadedError, RequestRefusedError
from bco_ray.serving.versions.catalog import ModelNotFoundError
from bco_ray.web import errors
from bco_ray.web.errors import ApiError


def as_api_error(error: Exception) -> ApiError:
    """See `web.errors.as_api_error`."""
    match error:
        case EngineOverloadedError():
            return ApiError(429, str(error), code="overloaded", headers={"retry-after": "1"})
        case EngineDeadError():
            return ApiError(503, str(error), code="engine_unavailable", headers={"retry-after": "2"})
        case DeadlineError():
            return ApiError(408, str(error), code="deadline_exceeded", headers={"x-should-retry": "false"})
        case ModelNotFoundError():
            return ApiError(404, str(error), code="model_not_found", param="model")
        case RequestRefusedError():
            return ApiError(400, str(error), code="request_refused")
    return errors.as_api_error(error)
