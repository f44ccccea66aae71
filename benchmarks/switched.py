"""SGLang's OpenAI layer with metrics switched on or off per request, for `bench_metrics`.

Imported by that server alone, because it imports SGLang.
"""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

from benchmarks.bench_metrics import TIMES, WITH, WITHOUT
from pd_eagle.http.openai_api import OpenAIApi
from pd_eagle.requests.metrics import Metrics, RequestWatch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from starlette.requests import Request as HttpRequest

    from pd_eagle.errors import PdEagleError
    from pd_eagle.http.answers import Endpoint
    from pd_eagle.requests.service import Service


class Unwatched(RequestWatch):
    """Counts nothing."""

    def admitted(self, prompt_tokens: int) -> None: ...
    def phase(self, name: str, seconds: float) -> None: ...
    def aborted(self, cause: str) -> None: ...
    def again(self, how: str, error: PdEagleError) -> None: ...
    def delta(self, tokens: int) -> None: ...
    def finished(self, meta: Mapping[str, Any]) -> None: ...
    def failed(self, error: PdEagleError) -> None: ...
    def end(self) -> None: ...


def _repeated(name: str) -> Callable[..., None]:
    once = getattr(RequestWatch, name)

    def method(self: RequestWatch, *args: Any) -> None:
        for _ in range(TIMES):
            once(self, *args)

    return method


#: Counts everything `TIMES` times: a single count costs less than the noise between rounds.
Repeated: type[RequestWatch] = type(
    "Repeated",
    (RequestWatch,),
    {name: _repeated(name) for name, value in vars(Unwatched).items() if callable(value)},
)


class SwitchedOpenAI(OpenAIApi):
    """Takes from the first token of each prompt whether metrics are counted."""

    def __init__(self, service: Service, engine_args: Mapping[str, Any], *_: object) -> None:
        super().__init__(service, {k: v for k, v in engine_args.items() if k != "script"})
        # Full collections of the objects that SGLang's import leaves would hit some rounds only.
        gc.collect()
        gc.freeze()
        self._service = service
        metrics = Metrics()
        self._watches = dict.fromkeys(WITH.values(), lambda _: Repeated(metrics)) | dict.fromkeys(
            WITHOUT.values(), lambda _: Unwatched(metrics)
        )

    async def parse(self, endpoint: Endpoint, body: bytes, http: HttpRequest) -> Any:
        request = await super().parse(endpoint, body, http)
        self._service._watch = self._watches[request.prompt[0]]
        return request
