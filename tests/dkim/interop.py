#!/usr/bin/env python3
"""Verifies the messages of a directory with dkimpy, opendkim-testmsg and Perl's Mail::DKIM.

Runs inside `unshare --map-root-user --net --mount`: the only network is our loopback, the only name
server is the thread below. pass-*.eml must verify, fail-*.eml must not. Two limits of the tools are
known: opendkim refuses messages with a repeated single field (*-repeats-*), and older Mail::DKIM
does not know Ed25519. Exit 0: all as expected; 1: not; 77: a tool is missing.
"""
import fcntl
import glob
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading

PERL = r"""
use Mail::DKIM::Verifier;
for my $file (@ARGV) {
    open my $in, '<:raw', $file or die;
    my $dkim = Mail::DKIM::Verifier->new();
    { local $/; $dkim->PRINT(<$in>); }
    $dkim->CLOSE;
    # The message's result is that of its best signature; another signer's may be in it too.
    my ($ours) = grep { $_->domain eq 'example.com' } $dkim->signatures;
    print "$file\t", ($ours ? $ours->result_detail : 'none'), "\n";
}
"""


def missing():
    gone = []
    try:
        import dkim, nacl  # noqa: F401
    except ImportError as error:
        gone.append(f"dkimpy ({error})")
    if not shutil.which("opendkim-testmsg"):
        gone.append("opendkim-testmsg")
    if subprocess.run(["perl", "-MMail::DKIM::Verifier", "-e1"], capture_output=True).returncode:
        gone.append("Mail::DKIM (perl)")
    return gone


def loopback_up():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        request = struct.pack("16sH14s", b"lo", 0x41, b"")  # IFF_UP | IFF_RUNNING
        fcntl.ioctl(probe, 0x8914, request)  # SIOCSIFFLAGS


def answer(query, zone):
    name, at = [], 12
    while query[at]:
        name.append(query[at + 1:at + 1 + query[at]].decode())
        at += 1 + query[at]
    question = query[12:at + 5]
    text = zone.get(".".join(name).lower())
    kind = struct.unpack("!H", query[at + 1:at + 3])[0]
    if text is None or kind != 16:
        return query[:2] + struct.pack("!HHHHH", 0x8580 | (0 if text else 3), 1, 0, 0, 0) + question
    data = b"".join(bytes([len(text[i:i + 255])]) + text[i:i + 255] for i in range(0, len(text), 255))
    record = struct.pack("!HHHIH", 0xC00C, 16, 1, 60, len(data)) + data
    return query[:2] + struct.pack("!HHHHH", 0x8580, 1, 1, 0, 0) + question + record


def serve(zone):
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", 53))

    def loop():
        while True:
            query, peer = server.recvfrom(4096)
            server.sendto(answer(query, zone), peer)

    threading.Thread(target=loop, daemon=True).start()


def by_dkimpy(files):
    import dkim
    results = {}
    for file in files:
        message = open(file, "rb").read()
        verifier = dkim.DKIM(message)
        try:
            # Ours is the topmost signature.
            results[file] = verifier.verify(idx=0)
        except dkim.DKIMException:
            results[file] = False
    return results


def by_opendkim(files):
    return {file: subprocess.run(["opendkim-testmsg"], stdin=open(file, "rb"),
                                 capture_output=True).returncode == 0 for file in files}


def by_perl(files):
    output = subprocess.run(["perl", "-e", PERL, *files], capture_output=True, text=True, check=True)
    rows = dict(line.split("\t") for line in output.stdout.splitlines())
    # None: not judged.
    judge = lambda text: None if "unsupported algorithm ed25519" in text else text == "pass"
    return {file: judge(rows.get(file, "")) for file in files}


def main():
    gone = missing()
    if gone:
        print("missing: " + ", ".join(gone))
        return 77
    directory = sys.argv[1]
    with open(os.path.join(directory, "zone")) as lines:
        zone = {name: text.encode() for name, text in (line.rstrip("\n").split("\t") for line in lines)}
    loopback_up()
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as resolv:
        resolv.write("nameserver 127.0.0.1\n")
        resolv.flush()
        subprocess.run(["mount", "--bind", resolv.name, "/etc/resolv.conf"], check=True)
        serve(zone)
        files = sorted(glob.glob(os.path.join(directory, "*.eml")))
        wrong = 0
        for name, verify in [("dkimpy", by_dkimpy), ("opendkim", by_opendkim), ("Mail::DKIM", by_perl)]:
            results = verify(files)
            judged = [file for file in files if results[file] is not None]
            wanted = lambda file: (os.path.basename(file).startswith("pass")
                                   and not (name == "opendkim" and "-repeats-" in file))
            bad = [file for file in judged if results[file] != wanted(file)]
            print(f"{name}: {len(judged) - len(bad)} of {len(judged)} as expected")
            wrong += len(judged) < 300
            for file in bad[:20]:
                print(f"  {os.path.basename(file)}: verified={results[file]}")
            wrong += len(bad)
        subprocess.run(["umount", "/etc/resolv.conf"], check=True)
    return 1 if wrong or not files else 0


sys.exit(main())
