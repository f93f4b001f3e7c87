"""Signatures of files, by OpenSSH (`ssh-keygen -Y`): who vouches for what stands in them.

A signature lies beside its file as FILE.sig. Who may sign is a file of lines `NAME ssh-ed25519 AAAA...`, as in
ssh-keygen(1), ALLOWED SIGNERS.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from mitigate.errors import MitigateError

NAMESPACE = "mitigate-evidence"  # so that a signature made for something else does not count


def signature_of(path: Path) -> Path:
    """Where a file's signature lies."""
    return path.with_name(f"{path.name}.sig")


def sign(path: Path, key: str | Path) -> Path:
    """Sign a file; an older signature is replaced. A key's passphrase is asked for on the terminal.

    Args:
        path: the file.
        key: a private key, or a public one whose private key an agent holds.

    Raises:
        MitigateError: no such key, it does not sign, or OpenSSH is not installed.
    """
    check_key(key)
    signature_of(path).unlink(missing_ok=True)
    _ssh_keygen("sign", "-n", NAMESPACE, "-f", str(key), str(path), failed=f"{key}: does not sign")
    return signature_of(path)


def check_key(key: str | Path) -> None:
    """Before there is something to sign.

    Raises:
        MitigateError: no such key.
    """
    if not Path(key).is_file():
        raise MitigateError(f"{key}: no such key; make one with: ssh-keygen -t ed25519 -f KEY")


def signer_of(path: Path, signers: str | Path) -> str:
    """Who signed a file: a name in the file of those who may.

    Raises:
        MitigateError: it is not signed, by nobody who may, or was changed since; or OpenSSH is not installed.
    """
    signature = signature_of(path)
    if not signature.is_file():
        raise MitigateError(f"{path}: not signed (no {signature.name})")
    if not Path(signers).is_file():
        raise MitigateError(f"{signers}: no such file; a line for each who may sign: NAME and a public key")
    allowed = ("-f", str(signers), "-s", str(signature))
    found = _ssh_keygen("find-principals", *allowed, failed=f"{path}: signed by nobody who is in {signers}")
    names = found.splitlines()
    if not names:
        raise MitigateError(f"{path}: signed by nobody who is in {signers}")
    _ssh_keygen(
        *("verify", *allowed, "-I", names[0], "-n", NAMESPACE),
        failed=f"{path}: is not what {names[0]} signed",
        content=path.read_bytes(),
    )
    return names[0]


def _ssh_keygen(action: str, *arguments: str, failed: str, content: bytes | None = None) -> str:
    """What `ssh-keygen -Y` prints."""
    try:
        done = subprocess.run(["ssh-keygen", "-Y", action, *arguments], input=content, capture_output=True, check=False)
    except FileNotFoundError:
        raise MitigateError("ssh-keygen is not installed: signatures are made and checked by OpenSSH") from None
    if done.returncode:
        reason = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
        raise MitigateError(f"{failed}{f' ({reason[-1]})' if reason else ''}")
    return done.stdout.decode(errors="replace").strip()
