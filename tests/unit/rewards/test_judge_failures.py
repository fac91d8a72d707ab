"""The judge against a real HTTP server on loopback: what fails and how, what is counted."""

import asyncio
import logging

import pytest

from lwz_ray.errors import RewardFailure, UserError
from rewards.endpoint_settings import check_judge_settings
from rewards.judge import Judge
from rewards.judge_client import REASONS
from tests.metric_docs import documented_keys
from tests.unit.rewards.judge_parts import DOWN, KEY, MALFORMED, PROMPT, counted, judge_config, judging, only_failure
from tests.unit.rewards.judge_server import GOOD, JudgeServer, Reply, serve


@pytest.mark.parametrize(
    ("bad", "reason", "says"),
    [
        (DOWN, "server_error", "500: the server says no"),
        (Reply(status=503, error=""), "server_error", "503"),
        (Reply(drop=True), "connection", "no connection"),
        (Reply(delay_s=5), "timeout", "no reply within judge.timeout_s=0.3"),
        (MALFORMED, "malformed", "Invalid JSON: expected ident at line 1 column 2, in I would give it a 7."),
        (Reply(content='{"reason": "r", "score": 11}'), "malformed", "less than or equal to 10"),
        (Reply(content='{"reason": "r", "score": 7}', finish_reason="length"), "malformed", "judge.max_tokens=64"),
        (Reply(raw="{"), "malformed", "no JSON"),
        (Reply(raw="[]"), "malformed", "no chat completion"),
        (Reply(raw='{"choices": []}'), "malformed", "no chat completion"),
        (Reply(raw='{"choices": [{"finish_reason": "content_filter", "message": {}}]}'), "malformed", "content_filter"),
        (Reply(status=429, headers={"Retry-After": "0"}), "rate_limited", "429: the server says no"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_what_may_pass_is_tried_again_and_then_given_up(bad: Reply, reason: str, says: str) -> None:
    short = {"timeout_s": 0.3} if bad.delay_s else {}
    async with judging(JudgeServer([bad, GOOD]), **short) as judge:
        assert await judge.score(PROMPT, ["good"]) == [3 / 9]
        assert (judge.usage["judge/calls"], judge.usage["judge/retries"]) == (2, 1)
        assert judge.usage[f"judge/failed_{reason}"] == 0
    server = JudgeServer([bad])
    async with judging(server, max_retries=1, **short) as judge:
        failure = await only_failure(judge)
        assert {k: v for k, v in counted(judge).items() if "failed" in k or k in ("calls", "retries")} == {
            "calls": 2,
            "retries": 1,
            f"failed_{reason}": 1,
        }
    assert failure.blame == "infrastructure"
    assert says in failure.reason
    assert server.base_url in failure.reason
    assert len(server.bodies) == 2


@pytest.mark.parametrize("asked", ["0", "Wed, 21 Oct 2015 07:28:00 GMT"])
async def test_the_server_says_when_to_come_back(asked: str) -> None:
    # The judge's own wait, 1000 s or more, would not fit into the deadline.
    limited = Reply(status=429, headers={"Retry-After": asked})
    async with judging(JudgeServer([limited, limited, GOOD]), retry_wait_s=2000) as judge:
        assert await judge.score(PROMPT, ["good"]) == [3 / 9]
        assert judge.usage["judge/retries"] == 2


@pytest.mark.parametrize("asked", ["3600", "Fri, 31 Dec 2999 23:59:59 GMT"])
async def test_a_wait_past_the_deadline_is_not_begun(asked: str) -> None:
    server = JudgeServer([Reply(status=429, headers={"Retry-After": asked}), GOOD])
    async with judging(server) as judge:
        failure = await only_failure(judge)
        assert counted(judge) == {"calls": 1, "failed_rate_limited": 1}
    assert "429: the server says no; the next attempt is due in" in failure.reason
    assert "s are left" in failure.reason


@pytest.mark.parametrize("asked", ["soon", "nan", ""])
async def test_a_retry_after_that_says_nothing_leaves_the_own_wait(asked: str) -> None:
    limited = Reply(status=429, headers={"Retry-After": asked})
    async with judging(JudgeServer([limited, GOOD])) as judge:
        assert await judge.score(PROMPT, ["good"]) == [3 / 9]


async def test_nobody_listens() -> None:
    async with serve(JudgeServer()) as gone:
        config = judge_config(gone.base_url)
    judge = Judge(config, seed=1, deadline_s=60)
    failure = await only_failure(judge)
    await judge.close()
    assert counted(judge) == {"calls": 3, "retries": 2, "failed_connection": 1}
    assert failure.reason.endswith("(attempt 3, the last)")


async def test_a_text_that_the_endpoint_refuses_fails_alone_and_at_once() -> None:
    server = JudgeServer([Reply(status=400, error="maximum context length is 4096 tokens"), GOOD])
    async with judging(server) as judge:
        failure = await only_failure(judge)
        assert counted(judge) == {"calls": 1, "failed_rejected": 1}
        assert await judge.score(PROMPT, ["good"]) == [3 / 9]
    assert failure.blame == "data"
    assert "400: maximum context length is 4096 tokens" in failure.reason


@pytest.mark.parametrize(
    ("status", "names"),
    [(401, "judge.api_key_env"), (403, "judge.model (now judge-model)"), (404, "judge.model=judge-model")],
)
async def test_a_mistake_in_the_settings_ends_the_run(
    status: int, names: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("LWZ_TEST_JUDGE_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    server = JudgeServer([Reply(status=status, error=f"key {KEY} is no good")])
    async with judging(server, api_key_env="LWZ_TEST_JUDGE_KEY") as judge:
        with pytest.raises(UserError) as caught:
            await judge.score(PROMPT, ["good", "bad"])
        with pytest.raises(UserError, match=str(status)):
            await judge.check()
    said = str(caught.value)
    assert f"{status}: key [hidden] is no good" in said
    assert names in said and server.base_url in said and "\n" not in said
    # The server got the key; nobody else did.
    assert set(server.authorizations) == {f"Bearer {KEY}"}
    assert KEY not in caplog.text + repr(judge.__dict__) + said


async def test_another_endpoints_key_is_never_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    async with judging(server := JudgeServer()) as judge:
        await judge.score(PROMPT, ["good"])
    assert server.authorizations == [None]


def test_settings_that_cannot_work_are_refused_before_anything_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LWZ_TEST_JUDGE_KEY", raising=False)
    with pytest.raises(UserError, match=r"judge\.api_key_env=LWZ_TEST_JUDGE_KEY: this environment variable is not set"):
        Judge(judge_config("http://127.0.0.1:1/v1", api_key_env="LWZ_TEST_JUDGE_KEY"), seed=1, deadline_s=60)
    monkeypatch.setenv("LWZ_TEST_JUDGE_KEY", f"{KEY}\n{KEY}")
    with pytest.raises(UserError, match="is no key: needs printable ASCII without spaces") as caught:
        check_judge_settings(judge_config("http://127.0.0.1:1/v1", api_key_env="LWZ_TEST_JUDGE_KEY"))
    assert KEY not in str(caught.value)
    with pytest.raises(UserError, match=r"judge\.base_url=127\.0\.0\.1:8000: needs the form http://host:port/v1"):
        check_judge_settings(judge_config("127.0.0.1:8000"))
    with pytest.raises(UserError, match=r"judge\.base_url=http://127\.0\.0\.1:80000/v1: needs the form"):
        check_judge_settings(judge_config("http://127.0.0.1:80000/v1"))
    with pytest.raises(UserError, match=r"judge\.base_url=null"):
        check_judge_settings(judge_config("http://x/v1").model_copy(update={"base_url": None}))
    with pytest.raises(UserError, match=r"holds a user name or password for example\.org") as caught:
        check_judge_settings(judge_config(f"https://me:{KEY}@example.org/v1"))
    assert KEY not in str(caught.value)
    for ending in (f"?api-key={KEY}", f"#{KEY}"):
        with pytest.raises(UserError, match=r"judge\.base_url: what stands after .*example\.org/v1 cannot") as caught:
            check_judge_settings(judge_config(f"https://example.org/v1{ending}"))
        assert KEY not in str(caught.value)
    with pytest.raises(ValueError, match="give both or neither"):
        judge_config("http://x/v1", price_input=1.0)


async def test_check_asks_and_says_what_is_wrong() -> None:
    for mode in ("pointwise", "pairwise_reference", "pairwise_group"):
        async with judging(JudgeServer(), mode=mode) as judge:
            await judge.check()
            assert judge.usage["judge/calls"] > 0
    async with judging(server := JudgeServer([MALFORMED])) as judge:
        with pytest.raises(UserError, match=f"judge.base_url={server.base_url} gave no verdict on a short text: .*"):
            await judge.check()


async def test_no_more_requests_are_under_way_than_allowed() -> None:
    server = JudgeServer([Reply(delay_s=0.05)])
    async with judging(server, max_concurrency=3) as judge:
        assert await judge.score(PROMPT, ["good"] * 12) == [3 / 9] * 12
    assert (server.most_in_flight, len(server.bodies)) == (3, 12)


async def test_one_that_waits_for_its_retry_keeps_no_place() -> None:
    server = JudgeServer([Reply(status=429, headers={"Retry-After": "30"}), GOOD])
    async with judging(server, max_concurrency=1) as judge:
        waiting = asyncio.create_task(judge.score(PROMPT, ["good"]))
        await asyncio.wait_for(server.asked.wait(), 20)
        assert await asyncio.wait_for(judge.score(PROMPT, ["good good"]), 20) == [6 / 9]
        assert not waiting.done()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


async def test_the_deadline_covers_the_wait_for_a_place() -> None:
    server = JudgeServer([Reply(delay_s=20)])
    async with judging(server, deadline_s=1, max_concurrency=1) as judge:
        found = await judge.score(PROMPT, ["good", "bad"])
        assert counted(judge) == {"calls": 1, "failed_deadline": 2}
    assert [f.reason for f in found if isinstance(f, RewardFailure)] == ["no verdict of the judge within 0.95 s"] * 2


async def test_what_is_cancelled_gives_its_place_back() -> None:
    server = JudgeServer([Reply(delay_s=20), GOOD])
    async with judging(server, max_concurrency=1) as judge:
        given_up = asyncio.create_task(judge.score(PROMPT, ["good"]))
        await asyncio.wait_for(server.asked.wait(), 20)
        given_up.cancel()
        assert await asyncio.wait_for(judge.score(PROMPT, ["good good"]), 20) == [6 / 9]
    assert given_up.cancelled()


async def test_tokens_cost_and_their_absence_are_counted() -> None:
    server = JudgeServer([GOOD, MALFORMED, Reply(usage=False)])
    async with judging(server, price_input=2.0, price_output=10.0) as judge:
        assert judge.usage["judge/cost"] == 0.0
        await judge.score(PROMPT, ["good"])
        assert judge.usage["judge/cost"] == pytest.approx(0.0004)  # 100 at 2 and 20 at 10 per million
        await judge.score(PROMPT, ["good"])  # a malformed reply is paid for too
        assert counted(judge) == {
            "calls": 3,
            "retries": 1,
            "prompt_tokens": 200,
            "completion_tokens": 40,
            "malformed": 1,
            "replies_without_usage": 1,
            "cost": pytest.approx(0.0008),
        }
        assert set(judge.usage) <= documented_keys()
        assert {f"judge/failed_{reason}" for reason in REASONS} <= set(judge.usage)
    async with judging(JudgeServer()) as judge:
        assert "judge/cost" not in judge.usage
