"""Sampling from a server: the same records as in-process, whatever the server does to requests, or dies of."""

from __future__ import annotations

import json
import math
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from served import BASE, SETTINGS, free_port, needs_server, served, small_policy

from llama3_lab.models import encode_prompt, load_policy, stop_ids
from llama3_lab.pipeline.candidates import sample
from llama3_lab.pipeline.journal import Answer, Journal
from llama3_lab.pipeline.prompts import held_out
from llama3_lab.pipeline.server import Server, ServerError, sample_served
from llama3_lab.pipeline.verdicts import verify
from llama3_lab.profiles import Sampling

PROMPTS = [p for p in held_out(8, "validation") if p.skill != "conversation"]
HOW = Sampling(k=3, max_new_tokens=64)
BASE_POLICY = load_policy(BASE, SETTINGS)
TOKENIZER = BASE_POLICY.tokenizer
EOT = stop_ids(TOKENIZER)[0]


class Fake:
    """A server in a thread: `reply(body, number)` gives (status, JSON or raw bytes) to request `number`."""

    def __init__(self, reply: Callable[[dict[str, Any], int], tuple[int, Any]]) -> None:
        self.bodies: list[dict[str, Any]] = []
        lock, fake = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(fake.bodies)
                    fake.bodies.append(body)
                status, answer = reply(body, number)
                if status == 0:  # hang up without a word
                    return self.connection.close()
                data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                if status == 429:
                    self.send_header("Retry-After", "0")
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None: ...

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def server(self, **more: Any) -> Server:
        given = {"urls": (self.url,), "tries": 3, "backoff": 0.01, "timeout": 5.0, **more}
        return Server(model="some/model", **given)


def answers(body: dict[str, Any], n: int | None = None, told: bool = True) -> dict[str, Any]:
    """A right reply with n choices, as vLLM gives it; each text holds the seed, so that texts differ."""
    choices = []
    for i in range(body["n"] if n is None else n):
        ids = TOKENIZER(f"{body['seed'] % 1000}+{i}", add_special_tokens=False).input_ids + [EOT]
        logprobs = {"content": [{"token": "x", "logprob": -0.5} for _ in ids]}
        choices.append({"index": i, "message": {"role": "assistant", "content": "?"}, "finish_reason": "stop",
                        **({"token_ids": ids, "logprobs": logprobs} if told else {})})  # fmt: skip
    prompt = len(encode_prompt(TOKENIZER, body["messages"][0]["content"]))
    return {"choices": choices, "usage": {"prompt_tokens": prompt, "completion_tokens": 7 * len(choices)}}


@pytest.fixture
def fake() -> Iterator[Callable[..., Fake]]:
    made: list[Fake] = []

    def make(reply: Callable[[dict[str, Any], int], tuple[int, Any]]) -> Fake:
        made.append(Fake(reply))
        return made[-1]

    yield make
    for one in made:
        one.http.shutdown()


def whole(found: list[Any], k: int = HOW.k) -> bool:
    """Whether there are k candidates a prompt, prompt by prompt, in order."""
    return [c.prompt for c in found] == [p for p in PROMPTS for _ in range(k)]


# -- what a server does with n


@pytest.mark.parametrize(
    ("given", "requests"),
    [(lambda n: n, len(PROMPTS)), (lambda n: 1, 3 * len(PROMPTS)), (lambda n: n + 2, len(PROMPTS)),
     (lambda n: min(n, 2), None)],
)  # fmt: skip
def test_k_answers_come_whatever_the_server_makes_of_n(fake, tmp_path, given, requests):
    one = fake(lambda body, _: (200, answers(body, given(body["n"]))))
    found = sample_served(one.server(), PROMPTS, HOW, TOKENIZER, tmp_path / "j.jsonl")
    assert whole(found)
    assert requests is None or len(one.bodies) == requests
    assert one.bodies[0]["n"] == 3, "K answers share the prompt only where they are asked for at once"


def test_no_two_requests_have_one_seed(fake, tmp_path):
    one = fake(lambda body, _: (200, answers(body, 1)))
    sample_served(one.server(), PROMPTS, HOW, TOKENIZER, tmp_path / "j.jsonl")
    assert max(Counter(b["seed"] for b in one.bodies).values()) == 1


def test_tokens_end_and_logprob_are_read_exactly(fake, tmp_path):
    ids = TOKENIZER("5+5=10", add_special_tokens=False).input_ids
    other = TOKENIZER.convert_tokens_to_ids("<|end_of_text|>")

    def reply(body, _):
        made = answers(body, 3)
        for choice, end in zip(made["choices"], ([EOT], [other], []), strict=True):
            choice["token_ids"] = ids + end
            choice["logprobs"] = {"content": [{"logprob": -0.25} for _ in choice["token_ids"]]}
        return 200, made

    found = sample_served(fake(reply).server(), PROMPTS[:1], HOW, TOKENIZER, tmp_path / "j.jsonl")
    assert [c.text for c in found] == ["5+5=10"] * 3
    assert [c.finished for c in found] == [True, False, False]  # another stop token is not our format's end
    assert [c.n_tokens for c in found] == [len(ids) + 1, len(ids) + 1, len(ids)]
    assert [c.logprob for c in found] == [-0.25 * c.n_tokens for c in found]
    assert {c.policy for c in found} == {"model"} and {c.temperature for c in found} == {1.0}


def test_without_logprobs_a_policy_computes_them_or_the_call_refuses(fake, tmp_path):
    one = fake(lambda body, _: (200, answers(body, told=False)))
    with pytest.raises(ServerError, match="tells no log-probabilities; give policy="):
        sample_served(one.server(concurrency=1), PROMPTS, HOW, TOKENIZER, tmp_path / "j.jsonl")
    before = len(one.bodies)
    found = sample_served(one.server(), PROMPTS, HOW, TOKENIZER, tmp_path / "j.jsonl", BASE_POLICY)
    assert whole(found) and all(math.isfinite(c.logprob) and c.logprob < 0 for c in found)
    assert len(one.bodies) == len(PROMPTS) and before >= 1, "what had arrived was asked for again"


def test_a_request_asks_for_plain_sampling_and_for_what_a_record_needs(fake, tmp_path):
    one = fake(lambda body, _: (200, answers(body)))
    sample_served(one.server(urls=(one.url + "/v1/",)), PROMPTS[:1], HOW, TOKENIZER, tmp_path / "a")
    sample_served(one.server(kind="transformers"), PROMPTS[:1], HOW, TOKENIZER, tmp_path / "b")
    vllm, serve = one.bodies
    assert vllm["logprobs"] and vllm["return_token_ids"] and vllm["stop_token_ids"] == stop_ids(TOKENIZER)
    assert (vllm["top_k"], vllm["top_p"], vllm["temperature"], vllm["max_tokens"]) == (-1, 1.0, 1.0, 64)
    more = json.loads(serve["generation_config"])
    assert more == {"do_sample": True, "top_k": 0, "top_p": 1.0, "eos_token_id": EOT,
                    "pad_token_id": TOKENIZER.pad_token_id}  # fmt: skip
    assert "return_token_ids" not in serve, "transformers serve refuses fields that it does not know"


# -- trouble


@pytest.mark.parametrize("trouble", [(503, {}), (429, {}), (500, b"no JSON"), (0, None), (200, b"<html>"),
                                     (200, {"choices": []}), (200, {"error": "x"})])  # fmt: skip
def test_a_request_that_failed_is_made_again(fake, tmp_path, trouble):
    one = fake(lambda body, number: trouble if number % 2 == 0 else (200, answers(body)))
    found = sample_served(one.server(tries=8, concurrency=2), PROMPTS, HOW, TOKENIZER, tmp_path / "j.jsonl")
    assert whole(found) and len(one.bodies) > len(PROMPTS)
    assert len((tmp_path / "j.jsonl").read_text().splitlines()) == 1 + len(found)


def test_a_server_that_does_not_answer_in_time_counts_as_gone(fake, tmp_path):
    one = fake(lambda body, _: (time.sleep(1.0), (200, answers(body)))[1])
    with pytest.raises(ServerError, match=r"no answer after 2 tries \(nothing for 0.1 s\).*make the same call again"):
        sample_served(one.server(tries=2, timeout=0.1, concurrency=1), PROMPTS[:1], HOW, TOKENIZER, tmp_path / "j")


def test_another_replica_takes_over(fake, tmp_path):
    one = fake(lambda body, _: (200, answers(body)))
    server = replace(one.server(), urls=(f"http://127.0.0.1:{free_port()}", one.url))
    assert whole(sample_served(server, PROMPTS, HOW, TOKENIZER, tmp_path / "j.jsonl"))


def test_what_no_other_try_mends_is_said_at_once(fake, tmp_path):
    one = fake(lambda body, _: (404, {"message": "no model\nof that name"}))
    with pytest.raises(ServerError, match="status 404.*no model") as error:
        sample_served(one.server(concurrency=1), PROMPTS, HOW, TOKENIZER, tmp_path / "j.jsonl")
    assert len(one.bodies) == 1 and "\n" not in str(error.value)


def test_what_is_on_its_way_when_another_request_fails_is_kept(fake, tmp_path):
    def reply(body, number):
        time.sleep(0.1 if number == 0 else 0.6)
        return (400, {"message": "too long"}) if number == 0 else (200, answers(body))

    with pytest.raises(ServerError, match="too long"):
        sample_served(fake(reply).server(concurrency=2), PROMPTS, HOW, TOKENIZER, tmp_path / "j.jsonl")
    assert len((tmp_path / "j.jsonl").read_text().splitlines()) == 1 + HOW.k


def test_another_chat_template_is_noticed(fake, tmp_path):
    def reply(body, _):
        made = answers(body)
        made["usage"]["prompt_tokens"] += 20
        return 200, made

    with pytest.raises(ServerError, match="the server reads .* tokens where our chat template gives"):
        sample_served(fake(reply).server(), PROMPTS, HOW, TOKENIZER, tmp_path / "j.jsonl")


@pytest.mark.parametrize(("made", "words"), [({"urls": ()}, "urls"), ({"urls": ("host:80",)}, "urls"),
                                             ({"kind": "tgi"}, "kind"), ({"tries": 0}, "tries=0")])  # fmt: skip
def test_settings_that_cannot_be_are_refused(made, words):
    with pytest.raises(ValueError, match=words):
        Server(**{"urls": ("http://127.0.0.1:1",), "model": "m", **made})


def test_prompts_with_one_id_are_refused(tmp_path):
    with pytest.raises(ValueError, match="ids must be unique"):
        sample_served(Server(("http://127.0.0.1:1",), "m"), PROMPTS[:1] * 2, HOW, TOKENIZER, tmp_path / "j")


# -- the journal


def test_after_a_crash_only_what_is_missing_is_asked_for(fake, tmp_path):
    """The server is gone after 10 replies; the journal then loses half a line, as of a killed process."""
    path = tmp_path / "j.jsonl"
    dying = fake(lambda body, number: (200, answers(body, 1)) if number < 10 else (0, None))
    with pytest.raises(ServerError):
        sample_served(dying.server(concurrency=2), PROMPTS, HOW, TOKENIZER, path)
    kept = path.read_bytes()
    assert len(kept.splitlines()) == 1 + 10
    path.write_bytes(kept[:-7])
    well = fake(lambda body, _: (200, answers(body, 1)))
    found = sample_served(well.server(), PROMPTS, HOW, TOKENIZER, path)
    assert whole(found) and path.read_bytes().startswith(kept[: kept[:-7].rfind(b"\n") + 1])
    assert sum(min(1, b["n"]) for b in well.bodies) == len(found) - 9
    again = sample_served(Server(("http://127.0.0.1:1",), "some/model"), PROMPTS, HOW, TOKENIZER, path)
    assert again == found, "all is there, so no server is needed"


def test_a_journal_of_other_settings_is_refused(fake, tmp_path):
    one = fake(lambda body, _: (200, answers(body)))
    sample_served(one.server(), PROMPTS, HOW, TOKENIZER, tmp_path / "j.jsonl")
    for prompts, how in ((PROMPTS[:-1], HOW), (PROMPTS, replace(HOW, seed=1))):
        with pytest.raises(ValueError, match="answers to other prompts or settings"):
            sample_served(one.server(), prompts, how, TOKENIZER, tmp_path / "j.jsonl")


def test_a_journal_has_one_writer_and_each_answer_once(tmp_path):
    answer = Answer("p", 0, "x", 1, True, None)
    with Journal(tmp_path / "j.jsonl", "d") as book:
        book.add([answer])
        with pytest.raises(ValueError, match="another process is writing it"):
            Journal(tmp_path / "j.jsonl", "d")
        with pytest.raises(ValueError, match="answer 0 to p is there already"):
            book.add([answer])
    with Journal(tmp_path / "j.jsonl", "d") as book:
        assert book.answers == {("p", 0): answer} and book.missing("p", 3) == [1, 2]


def test_a_damaged_journal_names_its_line(tmp_path):
    with Journal(tmp_path / "j.jsonl", "d") as book:
        book.add([Answer("p", 0, "x", 1, True, -1.0)])
    text = (tmp_path / "j.jsonl").read_text()
    (tmp_path / "j.jsonl").write_text(text + '{"prompt_id": 3}\n')
    with pytest.raises(ValueError, match="j.jsonl:3"):
        Journal(tmp_path / "j.jsonl", "d")


# -- a real server


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> Path:
    return small_policy(tmp_path_factory.mktemp("policy") / "small")


@needs_server
def test_a_real_server_gives_what_sampling_here_gives_and_survives_being_killed(policy, tmp_path):
    """One server for all that needs one: greedy answers, rates of sampled ones, and a kill half-way."""
    here, port, log = load_policy(policy, SETTINGS), free_port(), tmp_path / "log"
    greedy, sampled = Sampling(k=1, temperature=0.0), Sampling(k=4)
    with served(policy, port, log) as running:
        server = Server((running.url,), str(policy), "transformers", tries=2, backoff=0.05)
        found = sample_served(server, PROMPTS, greedy, here.tokenizer, tmp_path / "g.jsonl", here)
        own = sample(here, PROMPTS, greedy)
        assert sum(a.text == b.text for a, b in zip(found, own, strict=True)) >= len(own) - 1  # rounding may turn one
        same = [(a, b) for a, b in zip(found, own, strict=True) if a.text == b.text]
        assert all((a.finished, a.n_tokens, a.policy) == (b.finished, b.n_tokens, b.policy) for a, b in same)
        assert max(abs(a.logprob - b.logprob) for a, b in same) < 1e-3
        kept = kill_half_way(running, server, sampled, here, tmp_path / "s.jsonl")
    with served(policy, port, log):
        found = sample_served(server, PROMPTS, sampled, here.tokenizer, tmp_path / "s.jsonl", here)
    lines = (tmp_path / "s.jsonl").read_bytes()
    assert whole(found, 4) and lines.startswith(kept), "an answer was lost"
    names = [(a["prompt_id"], a["k"]) for a in map(json.loads, lines.splitlines()[1:])]
    assert len(names) == len(set(names)) == len(found), "an answer was repeated"
    same_rates(found, sample(here, PROMPTS, replace(sampled, seed=1)))


def kill_half_way(running, server, how, here, path) -> bytes:
    """Kill the server while it answers; return the journal that is left, some answers long."""
    failed: list[BaseException] = []

    def ask() -> None:
        try:
            sample_served(server, PROMPTS, how, here.tokenizer, path, here)
        except ServerError as error:
            failed.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    while asking.is_alive() and (not path.exists() or path.read_bytes().count(b"\n") < 20):
        time.sleep(0.02)
    running.kill()
    asking.join(30)
    assert failed and "what has arrived is kept" in str(failed[0])
    kept = path.read_bytes()
    assert 20 <= kept.count(b"\n") < len(PROMPTS) * how.k
    return kept


def same_rates(found, own) -> None:
    """Pass rate and mean log-probability by prompt differ by no more than chance, and the server does sample."""
    assert len({(c.prompt.id, c.text) for c in found}) > len(PROMPTS) * 1.2, "greedy, whatever was asked"
    passed = [[float(v.outcome == "pass") for v in verify(rows)] for rows in (found, own)]
    for ours, theirs in (passed, [[c.logprob for c in rows] for rows in (own, found)]):
        gaps = [statistics.fmean(ours[i : i + 4]) - statistics.fmean(theirs[i : i + 4]) for i in range(0, len(ours), 4)]
        error = statistics.stdev(gaps) / math.sqrt(len(gaps))
        assert abs(statistics.fmean(gaps)) < 4.5 * error + 1e-9
