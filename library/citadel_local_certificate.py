#!/usr/bin/python
"""Ansible module: a certificate for this host, signed by an authority of its own, made anew before it ends."""

from __future__ import annotations

DOCUMENTATION = r"""
module: citadel_local_certificate
short_description: Keeps a certificate of a local authority good
description:
  - Makes an authority once (C(ca.pem) for clients, C(ca.key)), for ten years, and a certificate with its key in one file (C(server.pem)).
  - The certificate is made anew where it would end within O(renew_days), bears other names or is of another authority. Clients that trust the
    authority notice nothing.
  - A file is written whole or not at all, so a run that was killed leaves nothing that the next one does not mend.
options:
  folder:
    description: Where the files are.
    type: path
    required: true
  names:
    description: Addresses and names that clients call the server. The first is also the subject.
    type: list
    elements: str
    required: true
  valid_days:
    description: How long a certificate is good. Browsers refuse more than 398 days.
    type: int
    default: 397
  renew_days:
    description: A certificate that is good for less than this is made anew.
    type: int
    default: 30
requirements: [openssl]
attributes:
  check_mode:
    support: full
    description: Says what would be done.
"""

EXAMPLES = r"""
- name: Have a certificate
  citadel_local_certificate:
    folder: /etc/haproxy/citadel/tls
    names: [192.168.10.29, hx-llm-server-01]
"""

RETURN = r"""
reasons:
  description: Why something was made, or would be; empty where all is good.
  returned: always
  type: list
  elements: str
"""

import ipaddress
import os
import shutil
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

CA_DAYS = 3650
DAY_SECONDS = 86400
NEW_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
CLEAN = {"LC_ALL": "C"}
AUTHORITY = """[req]
prompt = no
distinguished_name = name
x509_extensions = extensions
[name]
O = citadel-llm
CN = {name}
[extensions]
basicConstraints = critical, CA:TRUE, pathlen:0
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
"""
CERTIFICATE = """basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = {names}
"""


def subject_names(names):
    """The names as a certificate's extension has them."""
    entries = []
    for name in names:
        try:
            entries.append(f"IP:{ipaddress.ip_address(name)}")
        except ValueError:
            entries.append(f"DNS:{name}")
    return ",".join(entries)


class Certificates:
    """The files in a folder, and openssl."""

    def __init__(self, module):
        self.module = module
        self.folder = Path(module.params["folder"])
        self.names = module.params["names"]
        self.ca, self.ca_key, self.server = (self.folder / name for name in ("ca.pem", "ca.key", "server.pem"))

    def openssl(self, *arguments):
        return self.module.run_command(["openssl", *map(str, arguments)], environ_update=CLEAN)

    def demand(self, *arguments):
        self.module.run_command(["openssl", *map(str, arguments)], environ_update=CLEAN, check_rc=True)

    def ends_within(self, path, days):
        return self.openssl("x509", "-in", path, "-noout", "-checkend", days * DAY_SECONDS)[0] != 0

    def fits_key(self, path, key):
        """Whether a certificate and a key belong together."""
        certificate = self.openssl("x509", "-in", path, "-noout", "-pubkey")
        public = self.openssl("pkey", "-in", key, "-pubout")
        return certificate[0] == public[0] == 0 and certificate[1].strip() == public[1].strip()

    def bears(self, path):
        """Whether a certificate bears the names, all of them and no other, in any order."""
        wanted = {entry.partition(":")[2] for entry in subject_names(self.names).split(",")}
        code, out, _ = self.openssl("x509", "-in", path, "-noout", "-ext", "subjectAltName")
        borne = {entry.strip().partition(":")[2] for entry in out.partition("\n")[2].replace("IP Address:", "IP:").split(",")}
        return code == 0 and {plain(name) for name in borne} == {plain(name) for name in wanted}

    def problem_of_authority(self):
        if not (self.ca.exists() and self.ca_key.exists()):
            return "there is no authority"
        if not self.fits_key(self.ca, self.ca_key):
            return "the authority's certificate and key do not belong together"
        if self.ends_within(self.ca, self.module.params["valid_days"]):
            return "the authority ends before a new certificate would"
        return ""

    def problem_of_certificate(self):
        if not self.server.exists():
            return "there is no certificate"
        if not self.fits_key(self.server, self.server):
            return "the certificate and its key do not belong together"
        if self.openssl("verify", "-CAfile", self.ca, "-no_check_time", self.server)[0] != 0:
            return "the certificate is of another authority"
        if not self.bears(self.server):
            return "the certificate bears other names"
        if self.ends_within(self.server, self.module.params["renew_days"]):
            return f"the certificate ends within {self.module.params['renew_days']} days"
        return ""

    def make_authority(self, scratch):
        ca, key, settings = (scratch / name for name in ("ca.pem", "ca.key", "settings"))
        # The random part tells this authority from the one before it, which clients may still trust.
        name = f"citadel-llm {self.names[0][:40]} {os.urandom(4).hex()}"
        settings.write_text(AUTHORITY.format(name=name), encoding="utf-8")
        self.demand("req", "-x509", *NEW_KEY, "-days", CA_DAYS, "-config", settings, "-keyout", key, "-out", ca)
        # The key first: without its certificate it is no authority, and the next run makes another.
        key.replace(self.ca_key)
        ca.chmod(0o644)
        ca.replace(self.ca)

    def make_certificate(self, scratch):
        request, certificate, key = (scratch / name for name in ("request.pem", "certificate.pem", "server.key"))
        extensions = scratch / "extensions"
        extensions.write_text(CERTIFICATE.format(names=subject_names(self.names)), encoding="utf-8")
        self.demand("req", *NEW_KEY, "-subj", f"/O=citadel-llm/CN={self.names[0][:64]}", "-keyout", key, "-out", request)
        self.demand(
            *("x509", "-req", "-in", request, "-CA", self.ca, "-CAkey", self.ca_key, "-set_serial", f"0x{os.urandom(15).hex()}"),
            *("-days", self.module.params["valid_days"], "-sha256", "-extfile", extensions, "-out", certificate),
        )
        with certificate.open("a", encoding="utf-8") as file:
            file.write(key.read_text(encoding="utf-8"))
            file.flush()
            os.fsync(file.fileno())
        certificate.replace(self.server)


def plain(name):
    """One spelling of an address: openssl writes IPv6 out in full."""
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return name


def main():
    module = AnsibleModule(
        argument_spec={
            "folder": {"type": "path", "required": True},
            "names": {"type": "list", "elements": "str", "required": True},
            "valid_days": {"type": "int", "default": 397},
            "renew_days": {"type": "int", "default": 30},
        },
        supports_check_mode=True,
    )
    certificates = Certificates(module)
    authority = certificates.problem_of_authority()
    certificate = "the certificate is of another authority" if authority else certificates.problem_of_certificate()
    reasons = [reason for reason in (authority, certificate) if reason]
    if reasons and not module.check_mode:
        os.umask(0o077)
        scratch = certificates.folder / ".unfinished"
        shutil.rmtree(scratch, ignore_errors=True)  # there may be none; what cannot go fails the next line
        scratch.mkdir()
        try:
            if authority:
                certificates.make_authority(scratch)
            certificates.make_certificate(scratch)
        finally:
            shutil.rmtree(scratch)
        if problem := certificates.problem_of_certificate():
            module.fail_json(msg=f"openssl made a certificate that is not good: {problem}.", reasons=reasons)
    module.exit_json(changed=bool(reasons), reasons=reasons)


if __name__ == "__main__":
    main()
