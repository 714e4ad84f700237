"""What nobody else may read: everything that is printed, stored or tagged passes ``redact``."""

from __future__ import annotations

import os
import re
from urllib.parse import unquote

HIDDEN = "***"
SHORTEST = 8  # characters of a secret; what is shorter stands in many words
# A password may hold a slash where the rest of a URI cannot be a path with an @: in S3 and GS.
PASSWORD = re.compile(r"(?<=://)([^\s/@:]*):([^\s/@]+)(?=@)")
KEYS = re.compile(r"(?<=s3://)([^\s/@:]+):([^\s@]+)(?=@)|(?<=gs://)([^\s/@:]+):([^\s@]+)(?=@)")
PARAMETER = re.compile(
    r"([?&;](?:[\w-]*(?:secret|token|password|passwd|signature|credential)[\w-]*|"
    r"(?:access_|api_?|secret_)key(?:_id)?|sig|pwd)=)[^&;\s#'\"]+",
    re.IGNORECASE,
)
NAMES = re.compile(r"SECRET|PASSW|TOKEN|ACCESS_KEY|API_KEY|CREDENTIAL", re.IGNORECASE)
NOT_SECRET = ("_PATH", "_FILE", "_URI", "_URL", "_MODE", "_DIR", "_EXPIRES", "_ENDPOINT")
ADDRESSES = ("SEQTUNE_OPTUNA_STORAGE", "MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "DATABASE_URL")


def redact(text: str) -> str:
    """Returns a text without passwords in URIs, secret parameters, or the environment's secrets."""
    for secret in _secrets():
        text = text.replace(secret, HIDDEN)
    if "://" not in text:
        return text
    text = KEYS.sub(lambda found: f"{found[1] or found[3]}:{HIDDEN}", text)
    text = PASSWORD.sub(lambda found: f"{found[1]}:{HIDDEN}", text)
    return PARAMETER.sub(lambda found: f"{found[1]}{HIDDEN}", text)


def _secrets() -> list[str]:
    """Returns the secrets of this process's environment, the longest first."""
    found = set()
    for name, value in os.environ.items():
        if name in ADDRESSES and (password := PASSWORD.search(value)):
            found.add(password[2])
        elif NAMES.search(name) and not name.upper().endswith(NOT_SECRET):
            found.add(value)
    return sorted((one for one in found if len(one) >= SHORTEST), key=len, reverse=True)


def without_keys(uri: str) -> tuple[str, dict[str, str]]:
    """Splits ``s3://KEY:SECRET@BUCKET`` into the place and the variables that hold its keys."""
    found = KEYS.search(uri)
    if found is None or not uri.startswith("s3://"):
        return uri, {}
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    rest = uri[: found.start()] + uri[found.end() + 1 :]
    return rest, dict(zip(names, map(unquote, (found[1], found[2])), strict=True))
