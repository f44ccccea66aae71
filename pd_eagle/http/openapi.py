"""The service described: an OpenAPI document, and a page that shows it.

It does not know how a route answers.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from pd_eagle.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

#: Which request a path's body holds.
BODIES: Mapping[str, str] = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completion",
    "/v1/messages": "messages",
    "/v1/messages/count_tokens": "count_tokens",
    "/v1/responses": "responses",
    "/generate": "generate",
    "/vertex_generate": "vertex",
    "/invocations": "chat",
    "/tokenize": "tokenize",
    "/v1/tokenize": "tokenize",
    "/detokenize": "detokenize",
    "/v1/detokenize": "detokenize",
    "/v1/score": "score",
}
_ANY: dict[str, Any] = {"application/json": {}, "text/plain": {}, "text/event-stream": {}}
_RESPONSES = {
    "200": {"description": "The answer.", "content": _ANY},
    "default": {"description": "An error, which says what was wanted.", "content": _ANY},
}


def document(
    routes: Iterable[tuple[str, Sequence[str]]], schemas: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the OpenAPI document of `routes`, paths with their methods.

    `schemas` are those of `request_schemas.schemas`.
    """
    paths: dict[str, dict[str, Any]] = {}
    for path, methods in routes:
        name = re.sub(r"{(\w+):\w+}", r"{\1}", path)
        for method in methods:
            paths.setdefault(name, {})[method.lower()] = _operation(name, method)
    return {
        "openapi": "3.1.0",
        "info": {"title": "pd_eagle", "version": VERSION},
        "paths": paths,
        "components": {
            "schemas": dict(schemas),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _operation(path: str, method: str) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": f"{method.lower()} {path}",
        "responses": _RESPONSES,
    }
    if names := re.findall(r"{(\w+)}", path):
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in names
        ]
    if path in BODIES and method in ("POST", "PUT"):
        reference = {"$ref": f"#/components/schemas/{BODIES[path]}"}
        content = {"application/json": {"schema": reference}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


#: The page asks nothing of any other host.
PAGE_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
        "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    )
}
PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>pd_eagle</title>
<style>
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
summary{cursor:pointer;padding:.3rem 0}b{display:inline-block;width:4.5rem}
table{border-collapse:collapse;margin:.3rem 0 1rem 4.5rem}td{padding:.1rem .8rem .1rem 0;
vertical-align:top}code{font-size:.9em}@media(prefers-color-scheme:dark){body{background:#111;
color:#ddd}}
</style>
<h1>pd_eagle</h1><p>From <a href="openapi.json">openapi.json</a>.
<label>Key, where one is set: <input id="key" type="password"></label></p><main></main>
<script>
const main = document.querySelector("main"), key = document.querySelector("#key");
const add = (to, tag, text) => { const e = document.createElement(tag);
  e.textContent = text ?? ""; to.append(e); return e; };
const kind = s => !s ? "" : s.$ref ? s.$ref.split(/[./]/).pop() : s.enum ? s.enum.join(" | ") :
  s.anyOf ? s.anyOf.map(kind).join(" | ") : [s.type].flat().join(" | ") +
  (s.items ? " of " + kind(s.items) : "");
async function show() {
  const headers = key.value ? { authorization: "Bearer " + key.value } : {};
  const found = await fetch("openapi.json", { headers });
  main.replaceChildren();
  if (!found.ok) return add(main, "p", found.status + ": " + await found.text());
  const doc = await found.json();
  for (const [path, methods] of Object.entries(doc.paths))
    for (const [method, operation] of Object.entries(methods)) {
      const box = add(main, "details"), line = add(box, "summary");
      add(line, "b", method.toUpperCase()); add(line, "code", path);
      const body = operation.requestBody?.content["application/json"].schema.$ref;
      if (!body) { add(box, "p", "No body."); continue; }
      const schema = doc.components.schemas[body.split("/").pop()], table = add(box, "table");
      for (const [name, field] of Object.entries(schema.properties ?? {})) {
        const row = add(table, "tr"), needed = (schema.required ?? []).includes(name);
        add(add(row, "td"), "code", name + (needed ? " *" : "")); add(row, "td", kind(field));
        add(row, "td", field.description ?? "");
      }
    }
}
key.addEventListener("change", show); show();
</script>
</html>
"""
