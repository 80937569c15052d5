"""The federation of docker-compose.yml, really run: its report, what it refuses, what it survives, what it leaves."""

from __future__ import annotations

import json
import re
import time
import urllib.request

import pytest

from fl_precode import __version__
from tests.compose.engine import BASE_IMAGE, sh, timed
from tests.compose.federation import PORT, PROJECT

pytestmark = [pytest.mark.compose, pytest.mark.slow, pytest.mark.timeout(3600)]

ONE_SHOTS = ("keys", "partitions", "register", "submit", "attacker")
STAYING = ("superlink", "serverapp", "supernode-0", "supernode-1", "supernode-2", "report")
IMAGE = f"fl-precode:{__version__}"
RUNS_MINUTES = 15 * 60


def test_the_demo_builds_runs_and_prints_the_address_of_its_report(federation):
    with timed(federation.engine.seconds, "build"):
        federation.compose("build", seconds=1800)
    with timed(federation.engine.seconds, "3 rounds, attack and report"):
        done = federation.demo("up")
    assert done.returncode == 0, done.stdout[-6000:]
    assert f"report: http://127.0.0.1:{PORT}/" in done.stdout
    bytes_of_image = int(sh("docker", "image", "inspect", "-f", "{{.Size}}", IMAGE))
    federation.engine.seconds["image, GB"] = round(bytes_of_image / 1e9, 2)
    with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/", timeout=10) as answer:
        page = answer.read().decode()
    assert "Training images were reconstructed" in page
    (own,) = federation.record("demo")["federations"]
    assert (own["rounds"], own["clients"], own["updates"], own["left_out"]) == (3, 3, 9, [])
    assert [one["usable"] for one in own["accuracy"]] == [0, 3, 3, 3]


def test_every_container_is_confined(federation):
    for service in STAYING:  # the report answers before its first health check has passed
        _wait_until_healthy(federation, service)
    for service in (*ONE_SHOTS, *STAYING):
        found = federation.inspect(service)
        host = found["HostConfig"]
        assert found["Config"]["User"] == "10001:10001", service
        assert found["Config"]["Image"] == IMAGE, service
        assert host["ReadonlyRootfs"], service
        assert host["CapDrop"] == ["ALL"], service
        assert not host["CapAdd"], service
        assert not host["Privileged"], service
        assert "no-new-privileges:true" in host["SecurityOpt"], service
        assert host["Memory"] > 0, service
        assert host["NanoCpus"] > 0, service
        assert host["PidsLimit"] == 256, service
        assert host["LogConfig"]["Config"] == {"max-size": "10m", "max-file": "3"}, service
        assert host["RestartPolicy"]["Name"] == ("unless-stopped" if service in STAYING else "no"), service
        assert (found["State"].get("Health") or {}).get("Status") == ("healthy" if service in STAYING else None), (
            service
        )
        if service in ONE_SHOTS:
            assert found["State"]["ExitCode"] == 0, service


def test_keys_are_in_volumes_and_each_container_sees_its_own_only(federation):
    found = sh(
        "docker", "run", "--rm", "--user", "0", "--network", "none", IMAGE, "find", "/keys", "/data", "-type", "f"
    )
    assert found == "", "no key and no image of a client is in the image"
    looked = {
        "supernode-0": federation.one_off("supernode-0", ["find", "/keys", "/data", "-type", "f"]).output,
        "attacker": federation.one_off("attacker", ["find", "/keys", "/data", "-type", "f"]).output,
        "serverapp": federation.one_off("serverapp", ["find", "/keys", "/data", "-type", "f"]).output,
    }
    files = {name: {line for line in text.split() if line.startswith("/")} for name, text in looked.items()}
    assert files["supernode-0"] == {"/keys/ca/ca.crt", "/keys/node/node", "/data/partition.npz"}
    assert files["attacker"] == set()
    assert files["serverapp"] == {"/keys/ca/ca.crt", "/keys/superexec/secret"}


def test_the_attacker_reaches_no_address_and_cannot_write_on_the_tape(federation):
    assert federation.inspect("attacker")["HostConfig"]["NetworkMode"] == "none"
    networks = federation.inspect("superlink")["NetworkSettings"]["Networks"]
    (address,) = [one["IPAddress"] for one in networks.values()]
    program = (
        "import errno, os, socket\n"
        "print('interfaces', [name for _, name in socket.if_nameindex()])\n"
        f"for target in (('{address}', 8000), ('superlink', 8000)):\n"
        "    try: socket.create_connection(target, timeout=5); print('reached')\n"
        "    except OSError as error: print('refused', type(error).__name__, error.errno in (errno.ENETUNREACH, -3))\n"
        "try: open('/tape/demo/new', 'w'); print('written')\n"
        "except OSError as error: print('tape', error.errno == errno.EROFS)\n"
    )
    done = federation.one_off("attacker", ["python", "-c", program])
    assert done.code == 0, done.output
    lines = [line for line in done.output.splitlines() if line.split()[:1] in (["interfaces"], ["refused"], ["tape"])]
    assert lines == ["interfaces ['lo']", "refused OSError True", "refused gaierror True", "tape True"], done.output


@pytest.mark.parametrize(
    ("key", "tls", "said"),
    [
        ("", "--root-certificates=/keys/ca/ca.crt", "all supernodes must be registered"),
        ("new", "--root-certificates=/keys/ca/ca.crt", "failed to activate supernode"),
        ("own", "--insecure", ""),
    ],
    ids=["without a key", "with a key that nobody registered", "without TLS"],
)
def test_nodes_that_do_not_belong_are_refused(federation, key, tls, said):
    program = (
        "import subprocess, sys, deploy.keys as ssh_key\n"
        "from cryptography.hazmat.primitives.asymmetric import ec\n"
        "open('/tmp/new', 'wb').write(ssh_key._openssh_private(ec.generate_private_key(ec.SECP384R1())))\n"
        f"keys = {{'': [], 'new': ['/tmp/new'], 'own': ['/keys/node/node']}}[{key!r}]\n"
        f"command = ['flower-supernode', '--superlink=superlink:8000', {tls!r}]\n"
        "command += ['--auth-supernode-private-key=' + path for path in keys]\n"
        "sys.exit(subprocess.run([*command, '--max-retries=3', '--max-wait-time=20']).returncode)\n"
    )
    done = federation.one_off("supernode-2", ["python", "-c", program], seconds=120)
    assert done.code not in (0, 124), done.output[-3000:]
    assert said in done.output.lower(), done.output[-3000:]


def test_plain_http_and_foreign_certificates_are_refused(federation):
    program = (
        "from deploy.health import healthy\n"
        "print(healthy('http://superlink:8000/health'), healthy('https://superlink:8000/health'),\n"
        "      healthy('https://superlink:8000/health', certificate='/keys/ca/ca.crt'))\n"
    )
    done = federation.one_off("register", ["python", "-c", program])
    assert done.output.splitlines()[-1] == "False False True", done.output


def test_a_run_is_not_submitted_twice(federation):
    done = federation.one_off("submit")
    assert done.code == 0, done.output
    assert "nothing is submitted" in done.output


def test_a_client_that_dies_in_a_run_is_named_and_the_run_goes_on(federation):
    running = federation.start("submit", RUN="killed")
    with timed(federation.engine.seconds, "run whose client is killed"):
        federation.wait_for_round(running, "killed", finished=1)
        sh("docker", "kill", federation.container("supernode-2"))
        done = running.wait(RUNS_MINUTES)
    assert done.code == 0, done.output[-4000:]
    attacked = federation.one_off("attacker", RUN="killed", seconds=RUNS_MINUTES)
    assert attacked.code == 0, attacked.output[-3000:]
    (own,) = federation.record("killed")["federations"]
    assert [one["usable"] for one in own["accuracy"]] == [0, 3, 2, 2]
    (left_out,) = own["left_out"]
    assert left_out["round"] == 2
    assert "Unavailable" in left_out["reason"]
    assert len(left_out["node"]) > 10, "the id of the node, not of the SuperLink that answered for it"
    page = federation.one_off("attacker", ["cat", "/audit/killed/report/index.html"]).output
    assert f"Round 2, client {left_out['node']}: " in page


def test_a_client_that_never_comes_ends_the_run_with_a_reason(federation):
    # supernode-2 is still dead.
    done = federation.one_off("submit", RUN="incomplete", seconds=RUNS_MINUTES)
    assert done.code == 1, done.output[-3000:]
    assert "expected 3 clients (num-clients), 2 connected" in done.output
    sh("docker", "start", federation.container("supernode-2"))
    _wait_until_healthy(federation, "supernode-2")


def test_a_superlink_that_is_restarted_keeps_its_runs_and_gets_its_nodes_back(federation):
    running = federation.start("submit", RUN="restarted")
    with timed(federation.engine.seconds, "run whose SuperLink is restarted"):
        federation.wait_for_round(running, "restarted", finished=0)
        sh("docker", "restart", federation.container("superlink"))
        done = running.wait(RUNS_MINUTES)
    # Either outcome is sound: the exit code, what is said, the rounds and the SuperLink's own list must agree on it.
    assert done.code in (0, 1), done.output[-4000:]
    completed = done.code == 0
    assert ("finished:completed after" in done.output) == completed, done.output[-4000:]
    assert completed or re.search(r"finished:\w+ after \d+ s \S|Error: \S", done.output), "a failure has its reason"
    _wait_until_healthy(federation, "superlink")
    program = (
        "import json, deploy.connection as c\nc.connect()\n"
        "print(json.dumps(json.loads(c.flwr('ls', c.CONNECTION, '--format', 'json').communicate()[0])['runs']))\n"
    )
    runs = json.loads(federation.one_off("submit", ["python", "-c", program]).output.strip().splitlines()[-1])
    before = 2  # the demo, and the run that lost a client
    assert sum(run["status"] == "finished:completed" for run in runs) == before + completed, "and are kept"
    text = federation.one_off("submit", ["cat", "/results/restarted/result.json"]).output
    result = json.loads(text[text.index("{") :])
    assert not completed or (result["finished"], len(result["rounds"])) == (True, 4)
    again = federation.one_off("submit", RUN="again", ROUNDS="1", seconds=RUNS_MINUTES)
    assert again.code == 0, again.output[-4000:]


def test_nothing_is_left(federation):
    with timed(federation.engine.seconds, "down"):
        done = federation.demo("down")
    assert done.returncode == 0, done.stdout
    mark = f"label=com.docker.compose.project={PROJECT}"
    assert sh("docker", "ps", "-aq", "--filter", mark) == ""
    assert sh("docker", "volume", "ls", "-q", "--filter", mark) == ""
    assert sh("docker", "network", "ls", "-q", "--filter", mark) == ""
    assert sh("docker", "images", "-q", IMAGE) == ""
    assert sh("docker", "images", "-q", BASE_IMAGE) != "", "what was there before is left alone"


def _wait_until_healthy(federation, service, seconds=180):
    deadline = time.monotonic() + seconds
    while federation.inspect(service)["State"]["Health"]["Status"] != "healthy":
        assert time.monotonic() < deadline, service
        time.sleep(1)
