"""Why the hub gave nothing: every kind of refusal is told by its own reason, for models and for data sets alike."""

import errno
import json
import ssl
from types import SimpleNamespace

import hubmirror
import pytest
from test_hub import LLAMA, child, questions

from mmlora import network

WHOLE = {"config.json": LLAMA, "model.safetensors": b"x"}
HUB = "https://hub.example"
#: status, headers of the answer, and what the sentence must say.
REFUSALS = {
    "expired": (401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": 'User Access Token "mine" is expired'},
                ["does not accept yours", '"mine" is expired', "hf auth login"]),
    "invalid": (401, {"X-Error-Message": "Invalid credentials in Authorization header"},
                ["does not accept yours", "Invalid credentials", "/settings/tokens"]),
    "unknown": (401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Invalid username or password."},
                ["the hub has no model|has no data set of that name"]),
    "waiting": (403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Your request is awaiting a review from its authors."},
                ["is gated", "awaiting a review from its authors"]),
    "fine-grained": (403, {"X-Error-Message": "Please enable access to gated repositories in your fine-grained token settings"},
                     ["does not accept yours", "fine-grained token settings"]),
    "forbidden": (403, {"X-Error-Message": "Not for your region"}, ["refuses access (403: Not for your region)"]),
    "often": (429, {"Retry-After": "77"}, ["asked too often", "wait 77 seconds", "hf auth login"]),
    "limited": (429, {"RateLimit": '"api";r=0;t=55', "RateLimit-Policy": '"fixed window";"api";q=500;w=300'},
                ["wait 55 seconds"]),
    "down": (503, {"X-Error-Message": "We are down for maintenance"}, ["fault of its own (503: We are down for maintenance)", "run again later"]),
    "disabled": (403, {"X-Error-Message": "Access to this resource is disabled."}, ["has disabled it", "choose another"]),
}  # fmt: skip


def asked(*names: str) -> dict[str, dict[str, str]]:
    """Runs in the child: how `plan`, a download and a data set of each name end."""
    from mmlora.errors import MMLoraError
    from mmlora.models import hub
    from mmlora.needs import needs
    from mmlora.problems.load import load_problems

    ways = {"plan": needs, "model": hub.download, "data": load_problems}
    said: dict[str, dict[str, str]] = {}
    for name in names:
        said[name] = {}
        for way, ask in ways.items():
            try:
                said[name][way] = f"had {type(ask(name)).__name__}"
            except MMLoraError as error:
                said[name][way] = str(error)
    return said


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    with hubmirror.HubMirror() as hub:
        for name, (status, headers, _) in REFUSALS.items():
            for repo in (hub.model(f"maker/{name}", WHOLE), hub.dataset(f"maker/{name}", {"test.parquet": b""})):
                repo.refused = (status, headers)
        hub.model("maker/new-name", WHOLE)
        hub.dataset("maker/new-name", {"test.parquet": questions()})
        hub.model("maker/old-name", {}).moved_to = hub.dataset("maker/old-name", {}).moved_to = "maker/new-name"
        hub.model("maker/broken", {**WHOLE, "config.json": b"{oops"})
        hub.model("maker/list", {**WHOLE, "config.json": b"[]"})
        hub.model("maker/clip", {**WHOLE, "config.json": b'{"model_type": "clip"}'})
        names = [f"maker/{name}" for name in (*REFUSALS, "old-name", "broken", "list", "clip")]
        home = tmp_path_factory.mktemp("home")
        return child(hub.url, home, "asked", *names, module="test_network", HF_TOKEN="hf_mine").answers


@pytest.mark.parametrize("way", ["plan", "model", "data"])
@pytest.mark.parametrize("kind", REFUSALS)
def test_the_hubs_own_reason_is_told(answers, kind, way):
    said = answers[f"maker/{kind}"][way]
    assert f"maker/{kind}" in said
    for words in REFUSALS[kind][2]:
        assert any(each in said for each in words.split("|")), said


def test_a_renamed_repository_is_followed(answers):
    assert answers["maker/old-name"] == {"plan": "had Needs", "model": "had Snapshot", "data": "had list"}


def test_a_configuration_that_is_none_is_a_sentence(answers):
    for way in ("plan", "model"):
        assert "config.json of maker/broken is not valid JSON (" in answers["maker/broken"][way]
        assert "config.json of maker/list is not a JSON object" in answers["maker/list"][way]
    assert "writes no words" in answers["maker/clip"]["plan"]


def test_a_page_that_is_no_hub_is_told(tmp_path):
    """What a hotel's network answers to everything before one has logged in."""
    with hubmirror.HubMirror() as hub:
        page = (200, {"Content-Type": "text/html"})
        hub.model("maker/hotel", WHOLE).refused = hub.dataset("maker/hotel", {}).refused = page
        said = child(hub.url, tmp_path, "asked", "maker/hotel", module="test_network").answers["maker/hotel"]
    assert all("does not answer as a hub does (" in each and "login" in each for each in said.values()), said


# Proxies and certificates.


@pytest.fixture
def no_proxies(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)


@pytest.mark.parametrize(
    "name, value, words",
    [
        ("ALL_PROXY", "socks5://127.0.0.1:9", ["ALL_PROXY is socks5://127.0.0.1:9, a SOCKS proxy", "pip install socksio"]),
        ("https_proxy", "socks5h://u:secret@127.0.0.1:9", ["https_proxy is socks5h://…@127.0.0.1:9", "unset https_proxy"]),
        ("ALL_PROXY", "socks://127.0.0.1:9", ["socks:// is not a kind of proxy", "write socks5://"]),
        ("HTTPS_PROXY", "http://host:port", ["HTTPS_PROXY is http://host:port, which is not the address"]),
        ("HTTP_PROXY", "http://", ["not the address of a proxy"]),
        ("HTTPS_PROXY", '"http://host:3128"', ["HTTPS_PROXY is \""]),
        ("SSL_CERT_FILE", "/nowhere.pem", ["SSL_CERT_FILE names /nowhere.pem"]),
    ],
)  # fmt: skip
def test_settings_that_cannot_work_are_named(no_proxies, monkeypatch, name, value, words):
    assert network.settings_problem() == ""
    monkeypatch.setattr(network, "find_spec", lambda _: None)
    monkeypatch.setenv(name, value)
    problem = network.settings_problem()
    assert all(each in problem for each in words) and "secret" not in problem, problem


@pytest.mark.parametrize("value", ["http://127.0.0.1:3128", "proxy.example:3128", "https://u:p@proxy.example"])
def test_settings_that_can_work_are_not(no_proxies, monkeypatch, value):
    monkeypatch.setenv("HTTPS_PROXY", value)
    assert network.settings_problem() == ""


@pytest.mark.parametrize("value", ["socks5://127.0.0.1:9", "socks://127.0.0.1:9", "http://host:port"])
def test_models_and_data_end_in_that_sentence(tmp_path, value):
    said = child("http://127.0.0.1:9", tmp_path, "asked", "maker/any", module="test_network", ALL_PROXY=value).answers
    assert all(f"ALL_PROXY is {value}" in each and "unset ALL_PROXY" in each for each in said["maker/any"].values())


def test_a_proxy_that_does_not_answer_is_named(tmp_path):
    ways = {"HTTP_PROXY": "http://127.0.0.1:9", "NO_PROXY": ""}
    said = child("http://hub.example", tmp_path, "asked", "maker/any", module="test_network", **ways).answers[
        "maker/any"
    ]
    for each in said.values():
        assert "cannot be reached through the proxy http://127.0.0.1:9, which HTTP_PROXY names" in each


@pytest.mark.parametrize(
    "error, words",
    [
        (OSError(errno.ENOSPC, "No space left on device"), "no space is left on the disk"),
        (PermissionError(errno.EACCES, "Permission denied", "/cache/x"), "/cache/x cannot be written to"),
        (
            ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] self-signed"),
            "set SSL_CERT_FILE to a file",
        ),
        (UnicodeEncodeError("ascii", "Bearer ‘hf’", 7, 8, "ordinal not in range"), "your token holds characters"),
        (RuntimeError("Illegal header value b'Bearer hf_secret '"), "your token holds characters"),
        (json.JSONDecodeError("Expecting value", "<html>", 0), "does not answer as a hub does"),
        (TimeoutError("timed out"), f"{HUB} cannot be reached (timed out)"),
    ],
)
def test_what_a_client_raises_becomes_a_reason(no_proxies, error, words):
    said = network.reason(error, HUB)
    assert words in said and "hf_secret" not in said


def test_a_date_to_wait_for_becomes_seconds():
    answer = SimpleNamespace(status_code=429, headers={"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"})
    assert "wait 0 seconds" in network.reason(SimpleNamespace(response=answer), HUB)


def test_an_endpoint_without_its_protocol_is_named(no_proxies):
    said = network.reason(RuntimeError("Request URL is missing an 'http://' or 'https://' protocol."), "hub.example")
    assert said == "HF_ENDPOINT is 'hub.example', which is no address: write https:// before it, or unset it"
