"""The formats of strings that are kept: as patterns of ours, or as the library knows them."""

from __future__ import annotations

# Months have their days, years from 1000 on; no leap seconds, which few parsers take.
_YEAR = "[1-9][0-9]{3}"
_LEAP = "(?:[1-9][0-9](?:0[48]|[2468][048]|[13579][26])|(?:[2468][048]|[13579][26])00)"
_DATE = (
    f"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])"
    "|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))"
    f"|{_LEAP}-02-29)"
)
_HOUR = "(?:[01][0-9]|2[0-3]):[0-5][0-9]"
_TIME = rf"{_HOUR}:[0-5][0-9](?:\.(?:[0-9]{{3}}){{1,2}})?(?:Z|[+-]{_HOUR})"
_LABEL = "[a-zA-Z0-9]{1,20}(?:-[a-zA-Z0-9]{1,20}){0,2}"  # of at most 63 letters
_HOST = rf"(?:{_LABEL}\.){{0,3}}[a-zA-Z]{{2,20}}"
_WORD = "[a-zA-Z0-9_+-]{1,20}"
FORMATS = {
    "date": f"^{_DATE}$",
    "time": f"^{_TIME}$",
    "date-time": f"^{_DATE}T{_TIME}$",
    "hostname": f"^{_HOST}$",
    "email": rf"^{_WORD}(?:\.{_WORD}){{0,2}}@{_LABEL}\.{_HOST}$",
}
LIBRARY_FORMATS = frozenset({"duration", "ipv4", "ipv6", "uri", "uuid"})
