"""Uses OpenAI's Python client against a running broker, as its users do; fails loudly where it is not content."""

import json
import os
import time
import urllib.request

import openai
from openai import OpenAI

URL = os.environ["DUO_URL"] + "/v1"
SIM = os.environ["SIM_URL"]
client = OpenAI(base_url=URL, api_key=os.environ["DUO_CLIENT_TOKEN"], max_retries=0, timeout=15)
QUESTION = [{"role": "user", "content": "hello"}]
TOOLS = [
    {
        "type": "function",
        "function": {"name": "look_up", "parameters": {"type": "object", "properties": {"query": {"type": "string"}}}},
    }
]


def at_the_model_server():
    """The body of the last request that reached the model server."""
    with urllib.request.urlopen(SIM + "/control/last") as answer:
        return json.load(answer)


def expect(error, call):
    try:
        call()
    except error as raised:
        assert raised.body and raised.message, raised
        return raised
    raise AssertionError(f"expected {error.__name__}")


def chat():
    whole = client.chat.completions.create(model="mistral", messages=QUESTION, max_tokens=9)
    text = whole.choices[0].message.content
    assert text and whole.choices[0].finish_reason == "length", whole
    assert whole.usage.completion_tokens == 9, whole.usage

    stream = client.chat.completions.create(
        model="mistral", messages=QUESTION, max_tokens=9, stream=True, stream_options={"include_usage": True}
    )
    said, usage, ids = "", None, set()
    for chunk in stream:
        ids.add(chunk.id)
        said += "".join(choice.delta.content or "" for choice in chunk.choices)
        usage = chunk.usage or usage
    assert said == text, (said, text)
    assert usage.completion_tokens == 9 and len(ids) == 1, (usage, ids)

    two = client.chat.completions.create(model="mistral", messages=QUESTION, max_tokens=4, n=2)
    assert [choice.index for choice in two.choices] == [0, 1], two


def completions():
    whole = client.completions.create(model="mistral", prompt="once upon", max_tokens=7)
    stream = client.completions.create(model="mistral", prompt="once upon", max_tokens=7, stream=True)
    said = "".join(choice.text for chunk in stream for choice in chunk.choices)
    assert said and said == whole.choices[0].text, (said, whole)


def embeddings():
    # The library asks for base64 and decodes it, unless told otherwise.
    one = client.embeddings.create(model="mistral", input="hello")
    plain = client.embeddings.create(model="mistral", input=["other", "hello"], encoding_format="float", dimensions=64)
    assert [entry.index for entry in plain.data] == [0, 1], plain
    assert len(one.data[0].embedding) == 64, one
    near = max(abs(a - b) for a, b in zip(one.data[0].embedding, plain.data[1].embedding))
    assert near < 1e-6, near
    assert one.usage.prompt_tokens > 0, one.usage
    # Together they are longer than the window, each has it for itself.
    many = client.embeddings.create(model="mistral", input=["word " * 1000] * 200, encoding_format="float")
    assert len(many.data) == 200, len(many.data)
    # An answer of more bytes than a message of the queue may have says what to do.
    error = expect(
        openai.BadRequestError,
        lambda: client.embeddings.create(
            model="mistral", input=["text"] * 2000, encoding_format="float", dimensions=1024
        ),
    )
    assert "ask for less at once" in error.message, error.message


def tools_and_unknown_fields():
    question = [{"role": "user", "content": "please use-tool"}]
    whole = client.chat.completions.create(
        model="mistral", messages=question, tools=TOOLS, tool_choice="auto", extra_body={"unheard_of": {"a": [1, None]}}
    )
    call = whole.choices[0].message.tool_calls[0]
    assert call.function.name == "look_up" and json.loads(call.function.arguments)["query"], call
    assert whole.choices[0].finish_reason == "tool_calls"
    arrived = at_the_model_server()
    assert arrived["tools"] == TOOLS and arrived["unheard_of"] == {"a": [1, None]}, arrived

    arguments = ""
    for chunk in client.chat.completions.create(model="mistral", messages=question, tools=TOOLS, stream=True):
        for choice in chunk.choices:
            for part in choice.delta.tool_calls or []:
                arguments += part.function.arguments or ""
    assert arguments == call.function.arguments, arguments


def models():
    names = sorted(model.id for model in client.models.list())
    assert names == ["codegemma", "mistral"], names
    assert client.models.retrieve("mistral").id == "mistral"


def errors():
    ask = client.chat.completions.create
    stranger = client.with_options(api_key="duo_nobody")
    error = expect(
        openai.AuthenticationError, lambda: stranger.chat.completions.create(model="mistral", messages=QUESTION)
    )
    assert error.code == "invalid_api_key", error.body
    error = expect(openai.NotFoundError, lambda: ask(model="nothing", messages=QUESTION))
    assert error.code == "model_not_found", error.body
    error = expect(openai.BadRequestError, lambda: ask(model="mistral", messages="hello"))
    assert error.param == "messages", error.body
    error = expect(openai.BadRequestError, lambda: ask(model="mistral", messages=QUESTION, temperature=-1))
    assert error.type, error.body
    set_sim({"pace_ms": 100, "tokens": 300})
    small = client.with_options(api_key=os.environ["DUO_SMALL_TOKEN"]).chat.completions.create
    streams = [small(model="mistral", messages=QUESTION, max_tokens=300, stream=True) for _ in range(8)]
    error = expect(openai.RateLimitError, lambda: small(model="mistral", messages=QUESTION))
    assert error.code == "caller_limit" and int(error.response.headers["retry-after"]) > 0, error.body
    for stream in streams:
        stream.close()


def wait_for(look, over):
    """Asks again and again, as users do, for at most a minute."""
    until = time.monotonic() + 60
    while True:
        found = look()
        if over(found.status):
            return found
        assert time.monotonic() < until, found
        time.sleep(0.1)


def batch_of(endpoint, bodies):
    lines = [
        json.dumps({"custom_id": f"q{number}", "method": "POST", "url": endpoint, "body": body})
        for number, body in enumerate(bodies)
    ]
    file = client.files.create(file=("questions.jsonl", "\n".join(lines).encode()), purpose="batch")
    assert (file.object, file.purpose, file.filename) == ("file", "batch", "questions.jsonl"), file
    batch = client.batches.create(
        input_file_id=file.id, endpoint=endpoint, completion_window="24h", metadata={"night": "1"}
    )
    return file, batch


def over(status):
    return status in ("completed", "failed", "expired", "cancelled")


def files_and_batches():
    bodies = [{"model": "mistral", "messages": QUESTION, "max_tokens": 3 + number} for number in range(5)]
    bodies.append({**bodies[0], "temperature": -1})
    file, batch = batch_of("/v1/chat/completions", bodies)
    batch = wait_for(lambda: client.batches.retrieve(batch.id), over)
    assert batch.status == "completed" and batch.metadata == {"night": "1"}, batch
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (6, 5, 1), counts
    assert batch.usage.output_tokens == sum(range(3, 8)), batch.usage
    answers = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
    assert [answer["custom_id"] for answer in answers] == [f"q{number}" for number in range(5)], answers
    for body, answer in zip(bodies, answers):
        live = client.chat.completions.create(**body).choices[0].message.content
        assert answer["response"]["body"]["choices"][0]["message"]["content"] == live, answer
    (wrong,) = client.files.content(batch.error_file_id).text.splitlines()
    assert json.loads(wrong)["response"]["status_code"] == 400, wrong

    _, vectors = batch_of("/v1/embeddings", [{"model": "mistral", "input": "hello"}])
    vectors = wait_for(lambda: client.batches.retrieve(vectors.id), over)
    (answer,) = client.files.content(vectors.output_file_id).text.splitlines()
    assert len(json.loads(answer)["response"]["body"]["data"][0]["embedding"]) == 64, answer

    _, failed = batch_of("/v1/completions", [{"model": "nothing", "prompt": "a"}])
    failed = wait_for(lambda: client.batches.retrieve(failed.id), over)
    assert failed.status == "failed" and failed.errors.data[0].code == "model_not_found", failed
    assert failed.errors.data[0].line == 1, failed
    assert [found.id for found in client.batches.list(limit=1)] == [failed.id, vectors.id, batch.id]
    # Page by page.
    ids = [found.id for found in client.files.list(limit=2)]
    assert len(ids) == len(set(ids)) == 6 and file.id in ids, ids
    assert client.files.retrieve(file.id).bytes == file.bytes
    expect(openai.ConflictError, lambda: client.batches.cancel(batch.id))
    expect(openai.NotFoundError, lambda: client.batches.retrieve("batch_nothing"))
    error = expect(openai.BadRequestError, lambda: client.files.create(file=b"{}", purpose="fine-tune"))
    assert error.param == "purpose", error.body
    assert client.files.delete(file.id).deleted
    expect(openai.NotFoundError, lambda: client.files.content(file.id))


def responses():
    ask = client.responses.create
    whole = ask(model="mistral", input="hello", max_output_tokens=12)
    assert whole.status == "incomplete" and whole.output_text, whole
    left = ask(model="mistral", input="hello", max_output_tokens=12, background=True, metadata={"a": "b"})
    assert left.status == "queued" and left.id.startswith("resp_"), left
    done = wait_for(lambda: client.responses.retrieve(left.id), lambda status: status not in ("queued", "in_progress"))
    assert done.output_text == whole.output_text and done.metadata == {"a": "b"}, done
    assert done.incomplete_details.reason == "max_output_tokens" and done.usage.output_tokens == 12, done

    talk = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "input_text", "text": "hello"}]},
    ]
    events = list(ask(model="mistral", input=talk, background=True, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events))), events
    said = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert events[-1].type == "response.completed" and events[-1].response.output_text == said, events[-1]
    id = events[0].response.id
    for seen in (0, 4, len(events) - 2):
        rest = list(client.responses.retrieve(id, stream=True, starting_after=seen))
        assert rest == events[seen + 1 :], (seen, rest)

    set_sim({"pace_ms": 100, "tokens": 300})
    long = ask(model="mistral", input="hello", background=True)
    assert client.responses.cancel(long.id).status == "cancelled"
    set_sim({"pace_ms": 0, "tokens": 16})
    client.responses.delete(long.id)
    expect(openai.NotFoundError, lambda: client.responses.retrieve(long.id))
    error = expect(
        openai.BadRequestError, lambda: ask(model="mistral", input="hello", tools=[{"type": "web_search"}])
    )
    assert error.param == "tools", error.body
    error = expect(
        openai.BadRequestError, lambda: ask(model="mistral", input="hello", previous_response_id="resp_1")
    )
    assert error.param == "previous_response_id", error.body


def set_sim(change):
    request = urllib.request.Request(
        SIM + "/control", json.dumps(change).encode(), {"content-type": "application/json"}, method="PATCH"
    )
    urllib.request.urlopen(request).read()


for check in (chat, completions, embeddings, tools_and_unknown_fields, models, files_and_batches, responses, errors):
    check()
    print(f"{check.__name__}: fine")
