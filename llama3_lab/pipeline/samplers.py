"""draw(): candidates by whichever sampler the profile says: our own loop, continuous batching, or a server.

All three give the same records and draw from the same distribution; the random numbers differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from llama3_lab.models import PARENT, Policy, Style
from llama3_lab.pipeline.candidates import sample
from llama3_lab.pipeline.server import Server, ServerError, sample_served
from llama3_lab.profiles import Sampling
from llama3_lab.records import Candidate, Prompt


def draw(
    policy: Policy, folder: Path, prompts: Sequence[Prompt], how: Sampling, style: Style, journal: Path
) -> list[Candidate]:
    """Return `how.k` candidates a prompt, in order, by `how.by`.

    folder: where the policy lies; a server is asked for a model of that name. journal: where a server's answers are
    kept until all are there. The base's own format is always sampled in this process: chat servers know no other.

    Raises:
        ValueError: for settings out of range; ServerError, if the server does not serve this policy.
    """
    if how.by == "loop" or style == "base":
        return sample(policy, prompts, how, style)
    if how.by == "continuous":
        from llama3_lab.pipeline.continuous import sample_continuous

        return sample_continuous(policy, prompts, how, style)
    try:
        found = sample_served(server_of(how, folder, policy.name), prompts, how, policy.tokenizer, journal, policy)
    except ServerError as error:
        serve = "vllm serve" if how.serving.kind == "vllm" else "transformers serve"
        raise ServerError(f"{error}; asked for {policy.name}, which `{serve} {folder}` serves") from None
    journal.unlink(missing_ok=True)
    return [replace(c, seed=how.seed) for c in found]


def server_of(how: Sampling, folder: Path, name: str) -> Server:
    """Return the server that a profile names, asked for the policy in `folder`.

    Raises:
        ValueError: if no server is named, or the folder has no weights of its own.
    """
    serving = how.serving
    urls = tuple(u.strip() for u in serving.urls.split(",") if u.strip())
    if not urls:
        raise ValueError("sampling.by=server needs sampling.serving.urls, e.g. http://127.0.0.1:8000")
    if (folder / PARENT).is_file():
        raise ValueError(f"{folder}: an adapter alone, which no server loads: --set model.keep=merged, in a new run")
    return Server(urls, str(folder.resolve()), serving.kind, serving.concurrency, name=name)
