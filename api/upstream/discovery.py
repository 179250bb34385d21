"""Where the model servers are: the addresses in MODEL_SERVER_URLS, and those behind its names."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

# From a host name and a port to IP addresses. Raises OSError where there are none.
Resolve = Callable[[str, int], Awaitable[Collection[str]]]

log = logging.getLogger(__name__)


async def resolve(host: str, port: int) -> Collection[str]:
    """Ask the system: its hosts file, its DNS."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return {str(address[0]) for *_, address in found}


@dataclass(frozen=True)
class Address:
    """One model server. `url` has an IP address; `host` is the name it was found by, with port."""

    url: str
    host: str | None = None

    @property
    def shown(self) -> str:
        """The URL for logs, metrics and answers."""
        return _without_user(self.url)


class Directory:
    """Every address known. A name that cannot be looked up keeps the ones it had."""

    def __init__(self, urls: Sequence[str], resolve: Resolve) -> None:
        self.names = [url for url in urls if not _is_literal(url)]
        self._resolve = resolve
        self._found: dict[str, tuple[Address, ...]] = {
            url: () if url in self.names else (Address(url),) for url in urls
        }
        self._failures = dict.fromkeys(self.names, "has not been looked up yet")

    @property
    def addresses(self) -> list[Address]:
        """Each once, in the order of MODEL_SERVER_URLS."""
        once: dict[str, Address] = {}
        for found in self._found.values():
            for address in found:
                once.setdefault(address.url, address)
        return list(once.values())

    @property
    def failures(self) -> list[str]:
        """A sentence's part for each name without a good answer."""
        return [f"{_without_user(name)} {what}" for name, what in self._failures.items()]

    async def look_up(self, name: str, dead: Callable[[Address], bool]) -> None:
        """Ask for a name's addresses. If there is no answer, those that are dead are forgotten."""
        parts = urlsplit(name)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        try:
            found = await self._resolve(str(parts.hostname), port)
            if not found:
                raise OSError("it has no address")
        except (OSError, UnicodeError) as error:
            what = f"cannot be looked up ({error})"
            if self._failures.get(name) != what:
                log.warning("%s %s", _without_user(name), what)
            self._failures[name] = what
            self._found[name] = tuple(each for each in self._found[name] if not dead(each))
        else:
            self._failures.pop(name, None)
            # A server with addresses of both kinds is one server: then the IPv4 ones count.
            one_each = sorted([ip for ip in found if ":" not in ip] or found)
            self._found[name] = tuple(_at(name, ip) for ip in one_each)


def _without_user(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _is_literal(url: str) -> bool:
    with suppress(ValueError):
        return bool(ip_address(str(urlsplit(url).hostname)))
    return False


def _at(name: str, ip: str) -> Address:
    parts = urlsplit(name)
    user, at, host = parts.netloc.rpartition("@")
    port = f":{parts.port}" if parts.port else ""
    netloc = f"{user}{at}{f'[{ip}]' if ':' in ip else ip}{port}"
    return Address(parts._replace(netloc=netloc).geturl(), host)
