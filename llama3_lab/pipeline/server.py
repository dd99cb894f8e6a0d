"""sample_served(): prompts → candidates from an OpenAI-compatible server: the records that candidates.sample gives.

For models that one process cannot serve fast enough: vLLM in production (tensor and data parallel), `transformers
serve` for a small model. K answers to a prompt are asked for in one request, so that they share the prompt's cache;
what comes back is counted, for `transformers serve` ignores `n` and gives one. Every answer goes into a journal when
it arrives: after a server or this process has died, the same call asks only for what is missing.

Against candidates.sample: the same distribution, not the same random numbers. Where a server tells token ids (vLLM),
text, length and end are exact; where it does not, an answer whose <|eot_id|> is the very last token of the cap counts
as cut off, and a log-probability computed here is that of the text as our tokenizer splits it.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import random
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from llama3_lab.models import Policy, encode_prompt, stop_ids, token_logprobs
from llama3_lab.pipeline.journal import Answer, Journal
from llama3_lab.profiles import Sampling
from llama3_lab.progress import bar
from llama3_lab.records import Candidate, Prompt
from llama3_lab.store import digest_records, digest_settings

WORTH_ANOTHER_TRY = (408, 409, 425, 429, 500, 502, 503, 504)
LONGEST_PAUSE = 30.0  # seconds between two tries of one request
KEY = "OPENAI_API_KEY"  # where a server wants one, it stands in this variable of the environment


@dataclass(frozen=True)
class Server:
    """An OpenAI-compatible server, or several with the same weights: requests go round.

    urls: e.g. ("http://127.0.0.1:8000",). model: its name in requests; for `transformers serve`, the folder. kind:
    what may be asked of it. concurrency: requests in flight. timeout: seconds for one. tries: of each request, before
    the server counts as gone; the pause before the second is `backoff` seconds, then twice as long each time. name:
    what candidates carry as their policy; by default the last part of `model`.
    """

    urls: tuple[str, ...]
    model: str
    kind: Literal["vllm", "transformers"] = "vllm"
    concurrency: int = 8
    timeout: float = 300.0
    tries: int = 6
    backoff: float = 0.5
    name: str = ""

    def __post_init__(self) -> None:
        if not self.urls or not all(u.startswith(("http://", "https://")) for u in self.urls):
            raise ValueError(f"server: urls is {self.urls}; write them like http://127.0.0.1:8000")
        if self.kind not in ("vllm", "transformers"):
            raise ValueError(f"server: kind is {self.kind!r}; use vllm or transformers")
        if self.concurrency < 1 or self.tries < 1 or self.timeout <= 0 or self.backoff < 0:
            raise ValueError(f"server: concurrency={self.concurrency}, tries={self.tries}, timeout={self.timeout}, "
                             f"backoff={self.backoff}; they must be above 0")  # fmt: skip


class ServerError(ValueError):
    """A server that did not answer, or not what was asked; one line: where, what, what to do."""


def sample_served(
    server: Server, prompts: Sequence[Prompt], how: Sampling, tokenizer: Any, journal: Path,
    policy: Policy | None = None,
) -> list[Candidate]:  # fmt: skip
    """Return `how.k` candidates a prompt, prompt by prompt, in the order of `prompts`, as candidates.sample does.

    tokenizer: the served model's. journal: a JSONL file; the same call again goes on from it, and it may be deleted
    when the candidates are stored. policy: the same weights here; they give the log-probabilities that the server
    does not tell.

    Raises:
        ServerError: if the server is gone after `server.tries` tries, refuses the request, reads the prompt with
            another chat template, or tells no log-probabilities and there is no `policy`. What has arrived is kept.
        ValueError: for settings out of range, prompts with one id, or a journal of other prompts or settings.
    """
    if how.k < 1 or how.max_new_tokens < 1 or how.temperature < 0:
        raise ValueError(f"sampling: k={how.k}, max_new_tokens={how.max_new_tokens}, temperature={how.temperature}")
    if len({p.id for p in prompts}) < len(prompts):
        raise ValueError("two prompts have one id; ids must be unique, for answers are filed under them")
    of = hashlib.sha256(f"{digest_records(prompts)} {digest_settings(how)} {server.model}".encode()).hexdigest()
    asking = _Asking(server, prompts, how, tokenizer, policy is not None)
    with Journal(journal, of) as book:
        asking.collect(book)
        found = [book.answers[p.id, k] for p in prompts for k in range(how.k)]
    owners = [p for p in prompts for _ in range(how.k)]
    logprobs = _logprobs(found, owners, tokenizer, policy)
    name = server.name or (policy.name if policy else Path(server.model).name)
    return [Candidate(p, a.text, name, how.temperature, how.seed, a.n_tokens, a.finished, lp)
            for p, a, lp in zip(owners, found, logprobs, strict=True)]  # fmt: skip


def _logprobs(
    found: Sequence[Answer], owners: Sequence[Prompt], tokenizer: Any, policy: Policy | None
) -> list[float]:
    """Return the answers' log-probabilities: the server's where it told them, else the policy's of the text."""
    open_rows = [i for i, a in enumerate(found) if a.logprob is None]
    computed: dict[int, float] = {}
    if open_rows and policy is not None:
        end, known = stop_ids(tokenizer)[0], {p.id: encode_prompt(tokenizer, p.text) for p in owners}
        rows = [(known[owners[i].id], _ids(tokenizer, found[i].text) + [end] * found[i].finished) for i in open_rows]
        computed = dict(zip(open_rows, token_logprobs(policy, rows), strict=True))
    return [computed[i] if a.logprob is None else a.logprob for i, a in enumerate(found)]


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False).input_ids) if text else []


@dataclass
class _Asking:
    """One call's requests: who is asked, what for, and how an answer is read."""

    server: Server
    prompts: Sequence[Prompt]
    how: Sampling
    tokenizer: Any
    logprobs_here: bool
    stop: threading.Event = field(default_factory=threading.Event)

    def collect(self, book: Journal) -> None:
        """Ask for all that the journal lacks, several requests at a time; enter each answer when it comes."""
        todo = deque((p, left) for p in self.prompts if (left := book.missing(p.id, self.how.k)))
        most = self.how.k  # answers to one request; fewer where the server turns out to give fewer
        progress = bar(sum(len(left) for _, left in todo), f"{self.server.model[-20:]}: answers", "answer")
        running: dict[Future[list[Answer]], tuple[Prompt, list[int]]] = {}
        with ThreadPoolExecutor(self.server.concurrency) as pool:
            try:
                while todo or running:
                    while todo and len(running) < self.server.concurrency:
                        prompt, left = todo.popleft()
                        if left[most:]:
                            todo.appendleft((prompt, left[most:]))
                        running[pool.submit(self._ask, prompt, left[:most])] = (prompt, left[:most])
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        prompt, wanted = running.pop(future)
                        got = future.result()
                        book.add(got)
                        progress.update(len(got))
                        if wanted[len(got) :]:
                            most = min(most, len(got))
                            todo.appendleft((prompt, wanted[len(got) :]))
                        self._require_logprobs(got)
            finally:
                self.stop.set()  # nobody tries again; what is on its way is waited for, and kept
                for future in running:
                    if not future.cancel() and future.exception() is None:
                        book.add(future.result())
                progress.close()

    def _require_logprobs(self, got: Sequence[Answer]) -> None:
        if not self.logprobs_here and any(a.logprob is None for a in got):
            raise ServerError(f"{self.server.model}: this server tells no log-probabilities; give policy=, the same "
                              "weights, which computes them; the answers so far are kept")  # fmt: skip

    def _ask(self, prompt: Prompt, wanted: Sequence[int]) -> list[Answer]:
        """Return up to len(wanted) answers to a prompt; at least one."""
        body = self._body(prompt, wanted)
        why = ""
        for attempt in range(self.server.tries):
            if attempt and self.stop.wait(self._pause(attempt)):
                break
            # Each prompt has its place in the round, and another try goes to the next server.
            url = self.server.urls[(hash(prompt.id) + attempt) % len(self.server.urls)]
            why, reply = _post(f"{url.rstrip('/').removesuffix('/v1')}/v1/chat/completions", body, self.server.timeout)
            if reply is not None:
                if answers := self._read(prompt, wanted, reply):
                    return answers
                why = "no answer in the reply"
        raise ServerError(f"{', '.join(self.server.urls)}: no answer after {self.server.tries} tries ({why}); see to "
                          "the server, then make the same call again: what has arrived is kept")  # fmt: skip

    def _pause(self, attempt: int) -> float:
        """Return seconds to wait: twice as long each time, a little by lot, so that not all come back at once."""
        return min(LONGEST_PAUSE, self.server.backoff * 2 ** (attempt - 1)) * random.uniform(0.8, 1.2)

    def _body(self, prompt: Prompt, wanted: Sequence[int]) -> bytes:
        how, stops = self.how, stop_ids(self.tokenizer)
        # One seed would give one answer K times, and a server that starts anew begins its random numbers anew.
        digest = hashlib.sha256(f"{how.seed}\x1f{prompt.id}\x1f{wanted[0]}".encode()).digest()
        body: dict[str, Any] = {
            "model": self.server.model, "messages": [{"role": "user", "content": prompt.text}], "n": len(wanted),
            "temperature": how.temperature, "max_tokens": how.max_new_tokens,
            "seed": int.from_bytes(digest[:4], "big") >> 1,
        }  # fmt: skip
        if self.server.kind == "vllm":
            body |= {"top_p": 1.0, "top_k": -1, "stop_token_ids": stops, "logprobs": True, "return_token_ids": True}
        else:  # a request's temperature alone does not make it sample; and only our own end may end an answer
            more = {"do_sample": how.temperature > 0, "top_k": 0, "top_p": 1.0, "eos_token_id": stops[0],
                    "pad_token_id": self.tokenizer.pad_token_id}  # fmt: skip
            body |= {"top_p": 1.0, "generation_config": json.dumps(more)}
        return json.dumps(body).encode()

    def _read(self, prompt: Prompt, wanted: Sequence[int], reply: Any) -> list[Answer]:
        """Return the reply's answers, [] where it has none; no more than were wanted."""
        choices = reply.get("choices") if isinstance(reply, dict) else None
        if not isinstance(choices, list):
            return []
        usage = reply.get("usage") or {}
        ours, theirs = len(encode_prompt(self.tokenizer, prompt.text)), usage.get("prompt_tokens")
        if theirs is not None and theirs != ours:
            raise ServerError(f"{prompt.id}: the server reads {theirs} tokens where our chat template gives {ours}; "
                              "serve the exported folder, which has our template in it")  # fmt: skip
        alone = usage.get("completion_tokens") if len(choices) == 1 else None
        return [Answer(prompt.id, k, *self._one(choice, alone)) for k, choice in zip(wanted, choices, strict=False)]

    def _one(self, choice: dict[str, Any], n_tokens: int | None) -> tuple[str, int, bool, float | None]:
        """Return text, tokens, whether it ended by <|eot_id|>, and the log-probability if it was told."""
        text, finished = choice["message"].get("content") or "", choice.get("finish_reason") == "stop"
        if ids := choice.get("token_ids"):
            stops = stop_ids(self.tokenizer)
            text = self.tokenizer.decode(ids[: -1 if ids[-1] in stops else None], skip_special_tokens=False)
            n_tokens, finished = len(ids), ids[-1] == stops[0]
        n = n_tokens or len(_ids(self.tokenizer, text)) + finished
        told = [t["logprob"] for t in (choice.get("logprobs") or {}).get("content") or ()]
        return text, n, finished, min(0.0, sum(told)) if told and len(told) == n else None


# Not by way of a proxy: servers stand in the same network, most on the same machine.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _post(url: str, body: bytes, timeout: float) -> tuple[str, Any]:
    """Return ("", the reply), or (why, None) where another try may help.

    Raises:
        ServerError: where it cannot help, e.g. for a model of another name.
    """
    key = os.environ.get(KEY)
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    try:
        with _OPENER.open(urllib.request.Request(url, body, headers), timeout=timeout) as reply:
            return "", json.load(reply)
    except urllib.error.HTTPError as error:
        said = " ".join(error.read(500).decode(errors="replace").split())
        if error.code not in WORTH_ANOTHER_TRY:
            raise ServerError(f"{url}: refused with status {error.code}: {said[:200]}; mend the request's settings, "
                              "or the server's") from None  # fmt: skip
        time.sleep(min(LONGEST_PAUSE, _retry_after(error.headers.get("Retry-After"))))
        return f"status {error.code}: {said[:80]}", None
    except TimeoutError:
        return f"nothing for {timeout:g} s", None
    except (OSError, http.client.HTTPException) as error:
        return str(getattr(error, "reason", None) or error) or type(error).__name__, None
    except ValueError:
        return "a reply that is not JSON", None


def _retry_after(header: str | None) -> float:
    """Return the seconds that a busy server asks for; 0 where it names none."""
    return float(header) if header and header.strip().isdigit() else 0.0
