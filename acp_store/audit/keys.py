"""`Key`: what checkpoints and bundles are signed with, and checked."""

from __future__ import annotations

import hmac
import os
from abc import ABC, abstractmethod
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final

from acp_store.errors import ConfigurationError, MissingExtraError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

__all__ = ["KEY_VARIABLE", "Key"]

KEY_VARIABLE: Final = "ACP_STORE_AUDIT_KEY"
"""The environment variable that a key is taken from: the text of the key itself."""

_LEAST_BYTES: Final = 16
_MOST_BYTES: Final = 65_536
_PEM: Final = b"-----BEGIN "
_HOW_TO_MAKE_ONE: Final = "make one with: openssl rand -hex 32 > FILE"


class Key(ABC):
    """A key, made by one of the class methods. Nothing of it stands in its `repr` or in an error.

    A text that begins with ``-----BEGIN`` is an Ed25519 key in PEM: the private key signs, the private
    or the public one checks. Any other, of at least 16 bytes, is a secret for HMAC-SHA-256, which signs
    and checks.

    Attributes:
        algorithm: ``HMAC-SHA-256`` or ``Ed25519``.
        id: Which key it is, in 16 hexadecimal digits: of SHA-256 over the public key, or of a HMAC.
    """

    __slots__ = ("id",)
    algorithm: ClassVar[str]
    id: str

    @classmethod
    def from_text(cls, text: bytes, *, name: str = "the key") -> Key:
        """Make a key of its text; one line end behind it does not belong to it.

        Args:
            text: The text.
            name: What to call it in errors.

        Raises:
            ConfigurationError: It is too short, or a key of another kind.
            MissingExtraError: It is an Ed25519 key, and `cryptography` is not installed.
        """
        text = text.removesuffix(b"\n").removesuffix(b"\r")
        if text.startswith(_PEM):
            return _ed25519(text, name)
        if len(text) < _LEAST_BYTES:
            raise ConfigurationError(
                f"{name} has {len(text)} bytes, at least {_LEAST_BYTES} are wanted; {_HOW_TO_MAKE_ONE}"
            )
        return _Secret(text)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Key:
        """Read a key from a file.

        Raises:
            ConfigurationError: The file cannot be read, or `from_text` refuses what is in it.
            MissingExtraError: As in `from_text`.
        """
        try:
            with Path(path).open("rb") as file:
                text = file.read(_MOST_BYTES + 1)
        except OSError as error:
            raise ConfigurationError(f"the key file {path} cannot be read: {error.strerror}") from error
        if len(text) > _MOST_BYTES:
            raise ConfigurationError(f"the key file {path} has more than {_MOST_BYTES} bytes: that is no key")
        return cls.from_text(text, name=f"the key in {path}")

    @classmethod
    def from_environment(cls) -> Key | None:
        """Take the key from ``$ACP_STORE_AUDIT_KEY``; None where that is not set, or empty.

        Raises:
            ConfigurationError: As in `from_text`.
            MissingExtraError: As in `from_text`.
        """
        text = os.environ.get(KEY_VARIABLE)
        return cls.from_text(os.fsencode(text), name=f"the key in ${KEY_VARIABLE}") if text else None

    @abstractmethod
    def sign(self, message: bytes) -> bytes:
        """Return the signature of a message.

        Raises:
            ConfigurationError: It is a public key.
        """

    @abstractmethod
    def fits(self, message: bytes, signature: bytes) -> bool:
        """Whether this key has signed the message."""

    def __repr__(self) -> str:
        return f"<Key {self.algorithm} {self.id}>"

    def __reduce__(self) -> str:
        raise TypeError("a key is not pickled")


class _Secret(Key):
    """A secret that whoever signs and whoever checks both have."""

    __slots__ = ("_secret",)
    algorithm = "HMAC-SHA-256"

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self.id = self.sign(b"acp_store audit key id")[:8].hex()

    def sign(self, message: bytes) -> bytes:
        return hmac.digest(self._secret, message, "sha256")

    def fits(self, message: bytes, signature: bytes) -> bool:
        return hmac.compare_digest(self.sign(message), signature)


class _Ed25519(Key):
    """A key pair, or the public half of one."""

    __slots__ = ("_private", "_public")
    algorithm = "Ed25519"

    def __init__(self, public: Ed25519PublicKey, private: Ed25519PrivateKey | None) -> None:
        self._public = public
        self._private = private
        self.id = sha256(public.public_bytes_raw()).digest()[:8].hex()

    def sign(self, message: bytes) -> bytes:
        if self._private is None:
            raise ConfigurationError(f"key {self.id} is a public key, which only checks: sign with the private one")
        return self._private.sign(message)

    def fits(self, message: bytes, signature: bytes) -> bool:
        from cryptography.exceptions import InvalidSignature  # noqa: PLC0415  # of the extra

        try:
            self._public.verify(signature, message)
        except InvalidSignature:
            return False
        return True


def _ed25519(text: bytes, name: str) -> Key:
    try:
        from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415  # of the extra
        from cryptography.hazmat.primitives.asymmetric import ed25519  # noqa: PLC0415
        from cryptography.hazmat.primitives.serialization import (  # noqa: PLC0415
            load_pem_private_key,
            load_pem_public_key,
        )
    except ImportError as error:
        raise MissingExtraError("audit", "an Ed25519 key") from error
    try:
        is_public = text.startswith(b"-----BEGIN PUBLIC KEY-----")
        key = load_pem_public_key(text) if is_public else load_pem_private_key(text, password=None)
    except TypeError:
        raise ConfigurationError(f"{name} is encrypted: decrypt it first, as with openssl pkey") from None
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigurationError(f"{name} begins as PEM, and is no key that can be read") from None
    if isinstance(key, ed25519.Ed25519PublicKey):
        return _Ed25519(key, None)
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return _Ed25519(key.public_key(), key)
    kind = type(key).__name__.removeprefix("_").removesuffix("PrivateKey").removesuffix("PublicKey")
    raise ConfigurationError(f"{name} is a key for {kind}; in PEM only Ed25519 is known")
