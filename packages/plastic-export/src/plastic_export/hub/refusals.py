"""What the Hub, or the way to it, refuses: one line each, with what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from plastic_core.files import FormatError

_NO_TOKEN = "run `hf auth login`, or set HF_TOKEN to a token that may write"


@contextmanager
def told_in_a_line(repository: str) -> Iterator[None]:
    """Make one line of what huggingface_hub raises meanwhile.

    Raises:
        FormatError: If the Hub refuses.
        ConnectionError: If the connection breaks; the upload can be gone on with.
    """
    from huggingface_hub import errors as hub

    lost: type[Exception] = hub.HfHubHTTPError.__bases__[0]  # httpx's, or httpx2's

    try:
        yield
    except hub.LocalTokenNotFoundError:
        raise FormatError.about(repository, "no token for the Hub is set", _NO_TOKEN) from None
    except hub.HFValidationError as error:
        reason = f"this is no name for a repository ({str(error).partition(':')[0]})"
        raise FormatError.about(repository, reason, "give it as owner/name") from None
    except hub.OfflineModeIsEnabled:
        reason = "the Hub is not to be asked: HF_HUB_OFFLINE is set"
        raise FormatError.about(repository, reason, "unset it") from None
    except hub.HfHubHTTPError as error:
        raise _answered(repository, error) from error
    except (lost, RuntimeError, OSError) as error:
        cause = error.__cause__ if isinstance(error, RuntimeError) else error
        if isinstance(cause, hub.HfHubHTTPError):
            raise _answered(repository, cause) from error
        if isinstance(cause, (lost, ConnectionError)):
            raise _broken(repository, cause) from error
        raise


def _answered(repository: str, error: Exception) -> Exception:
    """Return the refusal for a status of HTTP."""
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", 0)
    if status == 401:
        return FormatError.about(repository, "the Hub does not know the token", _NO_TOKEN)
    if status == 403:
        reason = "the token may not write there"
        return FormatError.about(repository, reason, "check the owner, and what the token allows")
    if status >= 500:
        return _broken(repository, error)
    first = str(error).strip().partition("\n")[0]
    return FormatError.about(repository, f"the Hub refused it: {first}", "see what it says")


def _broken(repository: str, error: BaseException) -> ConnectionError:
    said = str(error).strip().partition("\n")[0] or type(error).__name__
    return ConnectionError(
        f"{repository}: the upload broke off ({said}); nothing is published before all of it is "
        "there, and the same command goes on"
    )
