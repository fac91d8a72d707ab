"""Every reply of a language model that is asked, kept in a JSONL file: nothing is asked twice, and a crash loses none.

One line a reply: `key` (a hash of everything that decides it), `about` (the request's own key, where it has one),
`model`, `text`, `finish_reason`, `prompt_tokens`, `completion_tokens`.
"""

import asyncio
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from launch.files import append_line, complete_lines
from lwz_ray.chat import ChatModel, ChatReply, ChatRequest
from lwz_ray.errors import UserError

_FIELDS = ("text", "finish_reason", "prompt_tokens", "completion_tokens")


class CachedChat:
    """Implements `ChatModel` before another one: a request that was answered before is answered from the file.

    Failures are not kept: they are asked again by the next run.
    """

    def __init__(self, inner: ChatModel, path: Path, identity: Any = None) -> None:
        """Read what the file holds; a last line that a kill cut short is dropped.

        identity: whatever else tells this model from another one of its name, in JSON's types.

        Raises UserError with the line of a file that was damaged otherwise.
        """
        self._inner, self._path, self._identity = inner, path, identity
        self._replies = _read(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._num_cached = 0

    @property
    def name(self) -> str:
        return self._inner.name

    @property
    def usage(self) -> Mapping[str, float]:
        """The model's own counts, of this process, and `cached`: requests that cost nothing."""
        return {**self._inner.usage, "cached": float(self._num_cached)}

    async def reply(self, request: ChatRequest) -> ChatReply:
        """Return the kept reply, or ask and keep it; the same request asked twice at once is asked once."""
        key = request_key(self.name, self._identity, request)
        lock = self._locks.setdefault(key, asyncio.Lock())
        async with lock:
            if (kept := self._replies.get(key)) is not None:
                self._num_cached += 1
                return kept
            found = await self._inner.reply(request)
            self._keep(key, request, found)
            return found

    def _keep(self, key: str, request: ChatRequest, reply: ChatReply) -> None:
        row = {"key": key, "about": request.key, "model": self.name}
        append_line(self._path, row | {name: getattr(reply, name) for name in _FIELDS})
        self._replies[key] = reply

    async def close(self) -> None:
        """Close the model."""
        await self._inner.close()


def request_key(name: str, identity: Any, request: ChatRequest) -> str:
    """Return a hash of everything that decides a reply; the messages count only where the request has no key."""
    asked: Any = [dict(m) for m in request.messages] if request.key is None else request.key
    parts = {
        "model": [name, identity],
        "asked": asked,
        "sampling": [request.max_tokens, request.temperature, request.top_p, request.seed],
        "schema": request.schema,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:32]


def _read(path: Path) -> dict[str, ChatReply]:
    """Return the replies by their keys."""
    replies: dict[str, ChatReply] = {}
    for number, row in enumerate(complete_lines(path), start=1):
        missing = [name for name in ("key", *_FIELDS) if not isinstance(row, dict) or name not in row]
        if missing:
            raise UserError(f"{path}, reply {number}: has no {missing[0]!r}; remove its line, it is asked again")
        replies[row["key"]] = ChatReply(**{name: row[name] for name in _FIELDS})
    return replies
