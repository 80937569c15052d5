"""The keys are what TLS and Flower's node authentication need, and only their owner may read them."""

from __future__ import annotations

import socket
import ssl
import stat
import subprocess
import threading

import pytest
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from deploy.keys import make_keys


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    root = tmp_path_factory.mktemp("keys")
    assert make_keys(root, nodes=2)
    return root


def shake_hands(keys, name, authority=None):
    """A TLS handshake with a server that has the SuperLink's certificate; the client's view."""
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(keys / "superlink" / "server.pem", keys / "superlink" / "server.key")
    here, there = socket.socketpair()

    def serve():
        try:
            serving.wrap_socket(there, server_side=True).close()
        except (ssl.SSLError, OSError):
            there.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with ssl.create_default_context(cafile=authority).wrap_socket(here, server_hostname=name) as channel:
            return channel.version()
    finally:
        here.close()
        thread.join()


@pytest.mark.parametrize("name", ["superlink", "localhost", "127.0.0.1"])
def test_who_trusts_the_authority_trusts_the_superlink(keys, name):
    assert shake_hands(keys, name, keys / "ca" / "ca.crt") in ("TLSv1.2", "TLSv1.3")


def test_another_name_or_authority_is_not_trusted(keys):
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        shake_hands(keys, "other", keys / "ca" / "ca.crt")
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(keys, "superlink")


def test_private_and_public_keys_of_the_nodes_belong_together(keys):
    publics = []
    for number in range(2):
        private = load_ssh_private_key((keys / f"node-{number}" / "node").read_bytes(), None)
        public = load_ssh_public_key((keys / "nodes" / f"node-{number}.pub").read_bytes())
        assert private.public_key() == public
        publics.append((keys / "nodes" / f"node-{number}.pub").read_text())
    assert publics[0] != publics[1]


def test_only_the_owner_may_read_them_and_the_authority_cannot_sign_again(keys):
    files = [path for path in keys.rglob("*") if path.is_file()]
    assert len(files) == 9
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    names = subprocess.run(["grep", "-l", "-r", "PRIVATE KEY", keys], capture_output=True, text=True).stdout.split()
    assert sorted(name.removeprefix(f"{keys}/") for name in names) == [
        "node-0/node",
        "node-1/node",
        "superlink/server.key",
    ]


def test_keys_that_are_there_are_kept_and_half_made_ones_are_not(keys, tmp_path):
    before = (keys / "superlink" / "server.key").read_bytes()
    assert not make_keys(keys, nodes=2)
    assert (keys / "superlink" / "server.key").read_bytes() == before
    make_keys(tmp_path, nodes=1)
    (tmp_path / "nodes" / "ready").unlink()
    old = (tmp_path / "node-0" / "node").read_bytes()
    assert make_keys(tmp_path, nodes=1)
    assert (tmp_path / "node-0" / "node").read_bytes() != old
