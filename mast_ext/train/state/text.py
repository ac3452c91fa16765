"""Writing text with names of files that are not UTF-8: on Linux a name may be any bytes.

Python keeps a byte of such a name that it cannot decode as a lone surrogate, so that the name can
still be opened. No encoding takes a surrogate: what people are to read shows it escaped.
"""

import codecs

READABLE = "mast_ext.readable"
"""For ``errors`` of files and streams: what cannot be encoded is escaped.

A byte of a file's name appears as ``\\xe9``, anything else as by ``backslashreplace``.
"""


def _escape(error: UnicodeError) -> tuple[str | bytes, int]:
    """Escapes one character, and says where to go on; see `codecs.register_error`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    code = ord(error.object[error.start])
    if 0xDC80 <= code <= 0xDCFF:  # the byte, as os.fsdecode stores it
        return f"\\x{code - 0xDC00:02x}", error.start + 1
    return codecs.backslashreplace_errors(
        UnicodeEncodeError(error.encoding, error.object, error.start, error.start + 1, error.reason)
    )


codecs.register_error(READABLE, _escape)
