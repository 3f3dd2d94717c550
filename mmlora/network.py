"""Why fetching from a server failed, and what to do: one phrase, from the exception that the client raised.

Imports only the standard library, so that `doctor` can ask it on a machine that lacks every package.
"""

from __future__ import annotations

import errno
import os
import re
import ssl
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from mmlora.errors import on_one_line

SOCKS = ("socks5", "socks5h")  # the kinds of SOCKS that the hub's client speaks, once socksio is installed
#: What the client raises when it reads an answer that is not a hub's.
NOT_A_HUB = (ValueError, LookupError, TypeError, AssertionError)
FULL = (errno.ENOSPC, errno.EDQUOT)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
ABOUT_TOKENS = re.compile(r"\btokens?\b|credential|expired", re.IGNORECASE)


def settings_problem() -> str:
    """Which setting in the environment keeps every client from connecting, and what to do; empty if none does."""
    for kind in ("http", "https", "all"):
        if (address := getproxies().get(kind)) and (problem := _proxy_problem(kind, address)):
            return problem
    file = os.environ.get("SSL_CERT_FILE", "")
    if file and not Path(file).is_file():
        return (
            f"SSL_CERT_FILE names {file}, which is not a file: give a file of certificates in PEM format, or unset it"
        )
    return ""


def reason(error: BaseException, server: str) -> str:
    """Why `server` did not give what it was asked for, in a phrase; `error` is what huggingface_hub raised."""
    if getattr(error, "response", None) is not None:
        return _answered(error, server)
    text = on_one_line(error)
    if problem := settings_problem():
        return problem
    if not server.startswith(("http://", "https://")):
        return f"HF_ENDPOINT is {server!r}, which is no address: write https:// before it, or unset it"
    if "CERTIFICATE_VERIFY_FAILED" in text or isinstance(error, ssl.SSLError):
        return (
            f"the certificate of {server} cannot be verified ({text}): if a company's proxy decrypts connections, set "
            "SSL_CERT_FILE to a file with its certificate"
        )
    if isinstance(error, OSError) and error.errno in FULL:
        return "no space is left on the disk: free some, or set HF_HOME to a folder on a larger disk"
    if isinstance(error, OSError) and error.errno in FORBIDDEN:
        return f"{error.filename or 'the cache'} cannot be written to: set HF_HOME to a folder where you may write"
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename} cannot be read or written ({error.strerror or text})"
    if "Bearer" in text or isinstance(error, UnicodeEncodeError):  # the text would show the token
        return "your token holds characters that cannot be sent: set HF_TOKEN anew, or run `hf auth login`"
    if isinstance(error, NOT_A_HUB):
        return f"{server} does not answer as a hub does ({text}): check HF_ENDPOINT, and whether the network asks for a login"
    return f"{server} cannot be reached{_through(server)} ({text})"


def missing(error: Any) -> bool:
    """Whether a `RepositoryNotFoundError` means that, and not an invalid or expired token, which the hub answers alike."""
    return not ABOUT_TOKENS.search(_words(error))


def gated(error: Any, page: str) -> str:
    """What to do about a `GatedRepoError`; `page` is where the repository asks for consent."""
    if error.response.status_code == 401:
        told = f"ask for access on {page}, then run `hf auth login` or set HF_TOKEN"
    else:
        told = f"your account has no access yet; ask for it on {page} and wait for the answer"
    words = _words(error)
    return f"{told} (the hub says: {words})" if " " in words else told  # one word is a code


def _words(error: Any) -> str:
    """The server's own error message."""
    said = error.response.headers.get("X-Error-Message") or getattr(error, "server_message", None) or ""
    return " ".join(said.split())[:300].rstrip(".")


def _answered(error: Any, server: str) -> str:
    """The phrase for an HTTP error: the server's own message, and what to do."""
    status, words = error.response.status_code, _words(error)
    told = f"{status}: {words}" if words else str(status)
    if status == 401 or (status == 403 and ABOUT_TOKENS.search(words)):
        return (
            f"{server} asks for a token, or does not accept yours ({told}): make one on {server}/settings/tokens, then run "
            "`hf auth login` or set HF_TOKEN; without any token (HF_TOKEN unset, `hf auth logout`) public repositories can be read"
        )
    if status == 407:
        return f"the proxy asks for a name and a password ({told}): write them into HTTPS_PROXY as http://name:password@host:port"
    if status == 429:
        seconds = _wait(error.response.headers)
        wait = f"wait {seconds} seconds" if seconds is not None else "wait some minutes"
        return f"{server} was asked too often ({told}): {wait}, then run again; with an account (`hf auth login`) more is allowed"
    if status >= 500:
        return f"{server} has a fault of its own ({told}): run again later"
    if "disabled" in words:
        return f"{server} has disabled it ({told}): choose another"
    return f"{server} refuses access ({told})"


def _wait(headers: Mapping[str, str]) -> int | None:
    """Seconds that a server asks to wait, by either of the two headers that say it."""
    if found := re.search(r"\bt=(\d+)", headers.get("RateLimit", "")):
        return int(found[1])
    value = headers.get("Retry-After", "")
    if value.isdigit():
        return int(value)
    try:
        return max(0, round(parsedate_to_datetime(value).timestamp() - time.time()))
    except ValueError:
        return None


def _proxy_problem(kind: str, address: str) -> str:
    """Why the proxy for this kind of address cannot be used; empty where it can."""
    name, url = _variable(kind), address if "://" in address else f"http://{address}"
    shown = re.sub(r"//[^/@]*@", "//…@", url)  # the password is not shown
    try:
        parts = urlsplit(url)
        scheme, whole = parts.scheme, bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        scheme, whole = "http", False
    if scheme in SOCKS and find_spec("socksio") is None:
        return (
            f"{name} is {shown}, a SOCKS proxy, which needs a package that is not installed: unset {name}, or unset it "
            "only to run python -m pip install socksio, because pip cannot use it either"
        )
    if scheme not in ("http", "https", *SOCKS):
        meant = f"; write socks5:// if it is a SOCKS proxy of version 5, or unset {name}"
        return f"{name} is {shown}, and {scheme}:// is not a kind of proxy that can be used{meant}"
    return (
        ""
        if whole
        else f"{name} is {shown}, which is not the address of a proxy: write http://host:port, or unset {name}"
    )


def _variable(kind: str) -> str:
    """The environment variable that sets this proxy, as it is spelled there."""
    names = (f"{kind}_proxy", f"{kind}_PROXY".upper())
    return next((name for name in names if os.environ.get(name)), "the system's proxy setting")


def _through(server: str) -> str:
    """The proxy that a request to the server goes through, in words; empty where it goes through none."""
    parts = urlsplit(server)
    kind = next((kind for kind in (parts.scheme, "all") if getproxies().get(kind)), None)
    if kind is None or proxy_bypass(parts.hostname or ""):
        return ""
    address = re.sub(r"//[^/@]*@", "//…@", getproxies()[kind])
    return f" through the proxy {address}, which {_variable(kind)} names"
