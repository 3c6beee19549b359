"""What goes wrong with the Hub is said in words, with whether waiting may help."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from huggingface_hub import get_session
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import hf_raise_for_status

from ftmamba.hub import hub_error, is_of_the_hub, retry_after


@pytest.fixture
def failed(own_hub):
    """Return the error that the real client makes of an answer."""

    def make(status, **headers):
        own_hub.faults.add(r"/api/whoami", status=status)
        answer = get_session().get(f"{own_hub.endpoint}/api/whoami-v2")
        answer.headers.update(headers)
        with pytest.raises(HfHubHTTPError) as caught:
            hf_raise_for_status(answer)
        return caught.value

    return make


PASSING = dict.fromkeys((408, 409, 412, 429, 500, 502, 503, 504), "try again later")
LASTING = {400: "", 401: "hf auth login", 403: "--create_pr", 404: "check the name", 413: "shard"}


@pytest.mark.parametrize(("status", "remedy"), [*PASSING.items(), *LASTING.items()])
def test_an_answer_may_pass_or_not_and_has_its_remedy(failed, status, remedy):
    found = hub_error(failed(status), "push to 'me/films'")
    assert (found.status, found.may_pass) == (status, status in PASSING)
    assert str(found).startswith("cannot push to 'me/films': ")
    assert remedy in str(found)


def test_the_wait_that_the_hub_asks_for_is_read(failed):
    at = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert 25 < retry_after(failed(503, **{"Retry-After": at})) <= 30
    assert retry_after(failed(429, RateLimit='"api";r=0;t=55')) == 55
    assert retry_after(failed(429, RateLimit='"api";r=3;t=55')) is None
    assert retry_after(failed(429)) is None
    assert hub_error(failed(429, **{"Retry-After": "17"}), "x").retry_after == 17


def test_a_cut_connection_may_pass_however_deep_it_lies(own_hub):
    own_hub.faults.add(r"/api/whoami", cut_after=1)
    with pytest.raises(Exception, match="peer closed") as caught:
        get_session().get(f"{own_hub.endpoint}/api/whoami-v2")
    wrapped = RuntimeError("Error while uploading 'x' to the Hub.")
    wrapped.__cause__ = caught.value
    for error in (caught.value, wrapped):
        found = hub_error(error, "load 'me/films'")
        assert found.may_pass
        assert "peer closed connection" in str(found)
        assert is_of_the_hub(error)


def test_being_offline_does_not_pass_and_bugs_are_not_the_hubs():
    assert not hub_error(OfflineModeIsEnabled("offline"), "load").may_pass
    for error in (ZeroDivisionError(), FileNotFoundError("x"), ValueError("x")):
        assert not is_of_the_hub(error)
    assert hub_error(ConnectionResetError("reset"), "load").may_pass
